"""Samples of a core, in perf's words, are told apart by what they were for; nothing that perf prints is misread."""

import pytest

from batchbridge.measure import profile
from batchbridge.measure.profile import Frame, Sample, part_of, samples_of, split

KERNEL = "[kernel.kallsyms]"
OURS = "/usr/lib/python3/site-packages/batchbridge/cython_ext/"


def stack(*frames, task="python"):
    """Frames as "symbol object"; the kernel's where no object is given."""
    made = []
    for frame in frames:
        symbol, _, file = frame.partition(" ")
        made.append(Frame(symbol, file or KERNEL))
    return Sample(task, tuple(made))


USER_FRAMES = (f"engine_turn {OURS}engine.so", "_PyEval_EvalFrameDefault /usr/bin/python3.11")


@pytest.mark.parametrize(
    ("part", "sample"),
    [
        ("tcp_ip", stack("tcp_ack", "tcp_rcv_established", "tcp_v4_do_rcv", "net_rx_action", "handle_softirqs")),
        ("tcp_ip", stack("__memcpy", "skb_copy_datagram_iter", "tcp_recvmsg_locked", "sock_recvmsg", "io_recv")),
        ("tcp_ip", stack("_raw_spin_lock_bh", "lock_sock_nested", "tcp_sendmsg", "io_send", "__do_sys_io_uring_enter")),
        ("tcp_ip", stack("veth_xmit [veth]", "dev_hard_start_xmit", "__dev_queue_xmit", *USER_FRAMES)),
        # What an interrupt from the other processor brings is TCP/IP; the interrupt itself is not.
        ("tcp_ip", stack("__netif_receive_skb", "process_backlog", "net_rx_action", "irq_exit_rcu",
                         "sysvec_call_function_single", "asm_sysvec_call_function_single", *USER_FRAMES)),
        ("ipi", stack("rps_trigger_softirq", "__flush_smp_call_function_queue", "sysvec_call_function_single")),
        ("ipi", stack("native_write_msr", "x2apic_send_IPI", "net_rps_send_ipi", "net_rx_action")),
        ("io_uring", stack("io_submit_sqes", "__do_sys_io_uring_enter", "do_syscall_64", *USER_FRAMES)),
        ("io_uring", stack("_raw_spin_unlock", "__schedule", "schedule", "io_cqring_wait", "do_syscall_64")),
        ("bpf", stack("bpf_prog_6dee_verdict bpf_prog_6dee", "sk_psock_verdict_recv", "tcp_data_queue")),
        ("bpf", stack("__htab_map_lookup_elem", "bpf_prog_6dee_verdict bpf_prog_6dee")),
        ("engine", stack(f"parse_head {OURS}parse.cpython-311-x86_64-linux-gnu.so", *USER_FRAMES)),
        ("engine", stack("__memmove_avx_unaligned /usr/lib/libc.so.6", *USER_FRAMES)),
        ("python", stack("PyDict_GetItem /usr/bin/python3.11", f"run {OURS}worker.cpython-311-x86_64-linux-gnu.so")),
        ("python", stack(f"answer {OURS}worker.cpython-311-x86_64-linux-gnu.so")),
        ("python", stack("DOUBLE_dot /v/lib/python3.11/site-packages/numpy/_core/_multiarray.so", *USER_FRAMES)),
        ("other", stack("entry_SYSCALL_64_after_hwframe", *USER_FRAMES)),
        ("other", stack("futex_wake", "do_futex", "do_syscall_64", *USER_FRAMES)),
        ("other", stack("io_schedule", "folio_wait_bit")),
        ("other", stack("[unknown] [unknown]")),
        ("other", stack("main /usr/sbin/nginx", task="nginx")),
        ("idle", stack("pv_native_safe_halt", "default_idle", "do_idle", task="swapper")),
        ("idle", stack("[vdso] [vdso]", task="bb-idle-loop")),
        ("tcp_ip", stack("tcp_ack", "net_rx_action", "irq_exit_rcu", f"run {OURS}soaker.so", task="bb-idle-loop")),
    ],
)  # fmt: skip
def test_a_sample_is_for_the_first_frame_that_a_rule_knows(part, sample):
    assert part_of(sample) == part


def test_another_servers_program_is_its_engine():
    assert part_of(stack("ngx_http_parse /usr/sbin/nginx", task="nginx"), "nginx") == "engine"
    assert part_of(stack("strlen /usr/lib/libc.so.6", "ngx_x /usr/sbin/nginx"), "nginx") == "engine"


SCRIPT = """
python  8025
\tffffffff815ebd0a tcp_ack+0x1a ([kernel.kallsyms])
\tffffffff815ec9d0 net_rx_action ([kernel.kallsyms])
\t            3258 io_uring_register_buffers (/usr/lib/x86_64-linux-gnu/liburing.so.2.3)

         swapper     0
\tffffffff815ebd0a pv_native_safe_halt ([kernel.kallsyms])

Web Content  77
\t    7ff00f446f40 std::map<int (*)(char), long>::find(int const&) (/opt/a b/lib (1).so (deleted))
\t    7ff00f446f40 [unknown] (/memfd:x (deleted))

a warning that perf printed among it
python 9
\t    7ff00f446f40 run (/v/batchbridge/cython_ext/engine.so)
"""


def test_perfs_print_is_read():
    first, second, *rest = samples_of(SCRIPT)
    assert first.task == "python" and [frame.symbol for frame in first.frames][1:] == [
        "net_rx_action", "io_uring_register_buffers",
    ]  # fmt: skip
    assert first.frames[2].object == "/usr/lib/x86_64-linux-gnu/liburing.so.2.3" and not first.frames[2].is_kernel
    assert second == Sample("swapper", (Frame("pv_native_safe_halt", KERNEL),))
    assert rest[-1] == Sample("python", (Frame("run", "/v/batchbridge/cython_ext/engine.so"),))
    assert list(samples_of("")) == [] and list(samples_of("no sample at all\n\n")) == []


def test_shares_are_of_busy_time():
    samples = [stack("tcp_ack")] * 6 + [stack("io_issue_sqe")] * 3 + [stack("do_idle")] * 90 + [stack("mystery")]
    found = split(samples)
    assert found.samples == 10
    assert found.shares == {"ipi": 0, "tcp_ip": 0.6, "io_uring": 0.3, "bpf": 0, "engine": 0, "python": 0, "other": 0.1}
    assert found.unknown == [(f"mystery ({KERNEL})", 1)]
    assert split([]).samples == 0 and set(split([]).shares.values()) == {0.0}


def test_without_perf_a_sentence_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert profile.why_not() == "perf is not installed, so the cost is not cross-checked by a profile"
    with pytest.raises(profile.ProfileError, match="cannot be run: no such file"):
        profile.Recorder(0)


def test_a_perf_that_is_not_allowed_to_look_says_why(monkeypatch, tmp_path):
    perf = tmp_path / "perf"
    perf.write_text("#!/bin/sh\necho 'Access to performance monitoring is limited.' >&2\nexit 255\n")
    perf.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert "may not look at a whole core here: Access to performance monitoring" in profile.why_not()
    with profile.Recorder(0) as recorder:
        recorder._process.wait(10)  # refused before it is asked to end
        with pytest.raises(profile.ProfileError, match="recorded nothing: Access to"):
            recorder.profile()
