"""One table makes the settings: its rows are sound, values take units, files and errors name what is wrong."""

import json
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchbridge.config import OPTIONS, Config, Option, read_toml
from batchbridge.errors import ConfigError
from batchbridge.policy import POLICY_FIELDS
from batchbridge.values import (
    Address,
    format_duration,
    format_size,
    parse_address,
    parse_duration,
    parse_duration_us,
    parse_size,
)

BY_NAME = {option.name: option for option in OPTIONS}


def write(folder, text, name="batchbridge.toml"):
    path = folder / name
    path.write_text(text)
    return path


# The table


def test_every_row_has_a_help_sentence_a_section_and_a_default_that_passes_its_own_check():
    for option in OPTIONS:
        assert option.help.endswith(".")
        assert option.section
        assert option.parse(option.default) == option.default
        if option.command_default is not None:
            assert option.parse(option.command_default) == option.command_default


def test_names_end_with_their_unit_and_flags_do_not():
    for option in OPTIONS:
        if option.kind == "size":
            assert "_size_bytes" in option.name
        if option.kind == "seconds":
            assert option.name.endswith("_s")
        if option.flag:
            assert "bytes" not in option.flag
            assert not option.flag.endswith("-s")
    flags = [option.flag for option in OPTIONS if option.flag]
    assert len(flags) == len(set(flags))


def test_every_number_is_bounded_on_both_sides():
    for option in OPTIONS:
        if option.kind in ("size", "seconds", "count"):
            assert option.minimum <= option.default <= option.maximum


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.minimum is not None], ids=lambda o: o.name)
def test_bounds_are_inclusive_and_told(option):
    for bound, outside, word in ((option.minimum, -1, "least"), (option.maximum, 1, "most")):
        bound = bound if option.kind == "seconds" else int(bound)
        assert option.parse(bound) == bound
        if bound + outside >= 0:
            with pytest.raises(ConfigError, match=rf"^{option.name}: .* is too (small|large); the {word} is"):
                option.parse(bound + outside)
        else:
            with pytest.raises(ConfigError, match=f"^{option.name}: "):
                option.parse(bound + outside)


def test_the_limits_that_operators_rely_on():
    config = Config()
    assert config.bind == ("127.0.0.1:8080",)
    assert config.engine == "auto"
    assert (config.head_size_bytes_max, config.body_size_bytes_max) == (16384, 1048576)
    assert (config.idle_timeout_s, config.header_timeout_s, config.body_timeout_s) == (75, 10, 30)
    assert config.access_log == "off"
    assert (config.precompressed, config.ranges_max) == ((), 16)
    assert BY_NAME["access_log"].command_default == "-"


def test_codings_are_named_once_each_in_the_order_of_preference():
    assert Config(precompressed=["gzip", "br"]).precompressed == ("gzip", "br")
    assert Config(precompressed="zstd").precompressed == ("zstd",)
    for wrong, said in (
        (["deflate"], "'deflate' is not known; choose br, zstd or gzip"),
        (["br", "br"], "named twice"),
    ):
        with pytest.raises(ConfigError, match=f"^precompressed: .*{said}"):
            Config(precompressed=wrong)


# Values


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), (4096, 4096), ("64k", 65536), ("64K", 65536), ("64KiB", 65536), ("64 kib", 65536),
        ("1.5GiB", 3 << 29),
        ("1kB", 1000), ("2MB", 2_000_000), ("256MiB", 256 << 20), ("1_000", 1000), ("12b", 12), (4096.0, 4096),
    ],
)  # fmt: skip
def test_sizes(text, size):
    assert parse_size(text, "x") == size


@pytest.mark.parametrize(
    "text", ["", "k", "12xb", "1.5", "-1", -1, "1e3", "1,5k", True, None, float("nan"), 1e400, "٣"]
)
def test_what_is_no_size(text):
    with pytest.raises(ConfigError, match=r"^--cache-size: .* is not a size; .*64k"):
        parse_size(text, "--cache-size")


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [
        ("75", 75),
        (1.5, 1.5),
        ("75s", 75),
        ("10ms", 0.01),
        ("200us", 0.0002),
        ("2min", 120),
        ("1h", 3600),
        ("0.5 s", 0.5),
    ],
)
def test_durations(text, duration_s):
    assert parse_duration(text, "x") == pytest.approx(duration_s)


def test_microseconds_stay_whole():
    assert parse_duration_us("10ms", "x") == 10_000
    assert parse_duration_us("200", "x") == 200
    with pytest.raises(ConfigError, match="whole number of microseconds"):
        parse_duration_us("0.5us", "x")


@pytest.mark.parametrize("text", ["", "s", "5 weeks", "-1s", float("inf"), False, "1.2.3s", []])
def test_what_is_no_duration(text):
    with pytest.raises(ConfigError, match="is not a duration; give seconds"):
        parse_duration(text, "idle_timeout_s")


def test_spoken_sizes():
    assert [format_size(size) for size in (0, 1000, 1536, 64 << 20, 5 << 40)] == [
        "0 B", "1000 B", "1.5 KiB", "64 MiB", "5120 GiB",
    ]  # fmt: skip


def test_spoken_durations():
    assert [format_duration(s) for s in (75.0, 0.01, 0.0002)] == ["75 s", "10 ms", "200 µs"]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080)),
        ("[::1]:0", Address("::1", 0)),
        ("[fe80::1%eth0]:80", Address("fe80::1%eth0", 80)),
        ("localhost:65535", Address("localhost", 65535)),
    ],
)
def test_addresses(text, address):
    assert parse_address(text, "bind") == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("8080", "not HOST:PORT"), (":8080", "not HOST:PORT"), ("a:b", "not HOST:PORT"), ("a:", "not HOST:PORT"),
        ("unix:/run/x", "not HOST:PORT"), ("::1:80", "in brackets"), ("[a]:80", "no IPv6"), ("a:65536", "out of range"),
        ("http://a:80", "not HOST:PORT"), ("a b:80", "not HOST:PORT"), (80, "not a list"),
        ([80], "not HOST:PORT"), ("a:²", "not HOST:PORT"),
    ],
)  # fmt: skip
def test_what_is_no_address(text, words):
    with pytest.raises(ConfigError, match=words):
        Config(bind=text)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine": "uring"}, "engine: 'uring' is not known; choose auto, kernel, io_uring or epoll"),
        ({"engine_threads": 0}, "engine_threads: 0 is too small; the least is 1"),
        ({"engine_threads": "two"}, "engine_threads: 'two' is not a whole number"),
        ({"engine_threads": True}, "engine_threads: True is not a whole number"),
        ({"receive_buffers": 1000}, "receive_buffers: 1000 is not a power of two; the next are 512 and 1024"),
        ({"head_size_bytes_max": "2MiB"}, r"head_size_bytes_max: 2MiB is too large; the most is 1048576 \(1 MiB\)"),
        ({"idle_timeout_s": 0}, "idle_timeout_s: 0 is too small; the least is 10 ms"),
        ({"app": "hello"}, "app: 'hello' is not MODULE_OR_FILE:OBJECT"),
        ({"app": "hello.py:1x"}, "not MODULE_OR_FILE:OBJECT"),
        ({"upstream": "https://a"}, "no https"),
        ({"upstream": "http://a/b"}, "no path"),
        ({"server_name": "a\r\nSet-Cookie: b"}, "not a server name"),
        ({"index_files": ["a/b"]}, "not a file name"),
        ({"index_files": 5}, "not a list"),
        ({"index_files": ["é" * 32]}, "is longer than 63 bytes"),
        ({"index_files": [str(number) for number in range(9)]}, "9 names are too many; the most is 8"),
        ({"bind": []}, "at least one"),
        ({"mime": {".x": "nothing"}}, "'nothing' for '.x' is not a media type"),
        ({"mime": {".x": "a/b\r\nc: d"}}, "not a media type"),
        ({"mime": ["wasm"]}, "not a media type"),
        ({"root": ""}, "not a path"),
        ({"root": "a\0b"}, "not a path"),
        ({"directory_listing": "yes"}, "not true or false"),
        ({"max_connections": None}, "max_connections: None is not a whole number"),
        ({"routes": {"score": {}}}, "begins with /"),
        ({"routes": {"/a": {"max_batchsize": 1}}}, r'routes."/a" max_batchsize is not a setting of a batch policy'),
        ({"routes": {"/a": {"timeout_us": "soon"}}}, "is not a duration; give microseconds"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(changes, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Config(**changes)
    assert "\n" not in str(caught.value)


def test_values_with_units_and_lists_become_plain_values():
    config = Config(
        cache_size_bytes="1GiB", idle_timeout_s="500ms", bind=["[::1]:80", "a:1"], mime={"WASM": "application/wasm"},
        upstream="http://app:9000/", index_files="home.html", routes={"/a": {"max_queue_delay_us": "1ms"}},
    )  # fmt: skip
    assert (config.cache_size_bytes, config.idle_timeout_s) == (1 << 30, 0.5)
    assert config.addresses == (Address("::1", 80), Address("a", 1))
    assert config.mime == {".wasm": "application/wasm"}
    assert config.upstream == "http://app:9000"
    assert config.index_files == ("home.html",)
    assert config.routes == {"/a": {"max_queue_delay_us": 1000}}


def test_a_limit_that_must_fit_into_another_follows_it():
    config = Config(head_size_bytes_max="4k", cache_size_bytes="64k")
    assert config.target_size_bytes_max == 4096
    assert config.cached_file_size_bytes_max == 65536


def test_replace_gives_a_checked_copy():
    config = Config()
    assert config.replace(idle_timeout_s="5s").idle_timeout_s == 5
    assert config.idle_timeout_s == 75
    with pytest.raises(ConfigError, match="max_conections is not a setting; did you mean max_connections"):
        config.replace(max_conections=5)
    with pytest.raises(AttributeError):
        config.root = "x"


# Files


def test_a_file_changes_the_defaults(tmp_path):
    path = write(tmp_path, """
        [server]
        root = "site"
        bind = ["127.0.0.1:0"]
        mime = {".x" = "text/x"}
        [limits]
        body_size_bytes_max = "4MiB"
        [timeouts]
        idle_timeout_s = 3
        [route."/score/{model}"]
        max_batch_size = 128
        max_queue_delay_us = "1ms"
        policy = "fixed"
    """)  # fmt: skip
    config = Config.from_toml(path)
    assert config.root == str(tmp_path / "site")
    assert config.bind == ("127.0.0.1:0",)
    assert config.body_size_bytes_max == 4 << 20
    assert config.idle_timeout_s == 3
    assert config.routes["/score/{model}"] == {"max_batch_size": 128, "max_queue_delay_us": 1000, "policy": "fixed"}
    assert config.header_timeout_s == 10


def test_routes_may_be_a_list_of_tables(tmp_path):
    path = write(tmp_path, '[[route]]\npath = "/a"\nconcurrency = 2\n[[route]]\npath = "/b"\ncoalesce = true\n')
    assert Config.from_toml(path).routes == {"/a": {"concurrency": 2}, "/b": {"coalesce": True}}


def test_every_policy_field_may_be_in_a_file():
    values = {
        "policy": "adaptive", "on_error": "fail", "coalesce": True, "idempotent": True, "preferred_batch_size": [1, 2],
    }  # fmt: skip
    changes = {name: values.get(name, 7) for name in POLICY_FIELDS}
    expected = {**changes, "preferred_batch_size": (1, 2)}
    assert Config(routes={"/": changes}).routes == {"/": expected}


def test_relative_paths_start_at_the_file(tmp_path, monkeypatch):
    (tmp_path / "etc").mkdir()
    text = '[server]\nroot = "/srv"\napp = "app.py:server"\n[log]\naccess_log = "logs/access"\n'
    write(tmp_path / "etc", text)
    monkeypatch.chdir(tmp_path)
    config = Config.from_toml("etc/batchbridge.toml")
    assert (config.root, config.app, config.access_log) == ("/srv", "etc/app.py:server", "etc/logs/access")
    write(tmp_path / "etc", '[server]\napp = "pkg.app:server"\n[log]\naccess_log = "-"\n')
    config = Config.from_toml("etc/batchbridge.toml")
    assert (config.app, config.access_log) == ("pkg.app:server", "-")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[limits]\nmax_conections = 5", r"\[limits\] max_conections is not a setting; did you mean max_connections\?"),
        ("[limit]\n", r"\[limit\] is not a table of the configuration; did you mean limits\?"),
        ("[zzz]\n", r"\[zzz\] is not a table of the configuration; there are server, limits"),
        ("[server]\nmax_connections = 5", r"max_connections belongs in the table \[limits\], not \[server\]"),
        ("max_connections = 5", r"max_connections belongs in the table \[limits\]"),
        ("server = 5", r"server is a table; write \[server\]"),
        ("[timeouts]\nidle_timeout_s = 'soon'", r"\[timeouts\] idle_timeout_s: 'soon' is not a duration"),
        ("[route.'/a']\nmax_batch_sise = 4", r"route.\"/a\" max_batch_sise is not a setting .* max_batch_size\?"),
        ("[route.'/a']\nmax_batch_size = 0", r"route.\"/a\" max_batch_size: 0 is out of range"),
        ("route = 5", "not a table of routes"),
        ("[route]\n'/a' = 5", "needs a table"),
        ("[[route]]\nmax_batch_size = 4", "needs its path"),
        ("[[route]]\npath='/a'\n[[route]]\npath='/a'", "twice"),
        ("= 5", "is not TOML"),
    ],
)
def test_a_wrong_file_is_named_with_the_key_and_a_suggestion(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=words) as caught:
        read_toml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="no-such: cannot be read: no such file"):
        Config.from_toml(tmp_path / "no-such")
    with pytest.raises(ConfigError, match="cannot be read: is a directory"):
        Config.from_toml(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        Config.from_toml(tmp_path / "binary")


def values_of(option: Option) -> st.SearchStrategy:
    if option.choices:
        return st.sampled_from(option.choices)
    text = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=20)
    numbers = {"size": st.integers, "count": st.integers, "seconds": st.floats}
    if option.power_of_two:
        least, most = (int(bound).bit_length() - 1 for bound in (option.minimum, option.maximum))
        return st.integers(least, most).map(lambda power: 1 << power)
    if option.kind in numbers:
        low, high = option.minimum, option.maximum
        return numbers[option.kind](low, high) if option.kind == "seconds" else st.integers(int(low), int(high))
    return {
        "switch": st.booleans(),
        "path": st.none() | text.map(lambda path: f"/{path}"),
        "log": st.sampled_from(["off", "-", "/var/log/access \x7f\"'\\é"]),
        "mime": st.dictionaries(st.sampled_from([".a", ".b"]), st.just("text/plain; charset=utf-8")),
        "routes": st.dictionaries(st.just('/a"{b}'), st.fixed_dictionaries({"max_batch_size": st.integers(1, 9)})),
        "file_names": st.lists(st.sampled_from(["index.html", "näh.htm"]), max_size=8).map(tuple),
    }.get(option.kind, st.just(option.default))


@given(st.fixed_dictionaries({option.name: values_of(option) for option in OPTIONS}))
def test_a_configuration_written_as_toml_reads_as_the_same(tmp_path_factory, values):
    config = Config(**values)
    path = tmp_path_factory.mktemp("toml") / "batchbridge.toml"
    path.write_text(config.to_toml())
    assert Config.from_toml(path) == config


def test_as_dict_is_plain_data():
    config = Config(mime={"x": "a/b"})
    assert json.loads(json.dumps(config.as_dict())) == config.as_dict()
    assert config.as_dict()["mime"] == {".x": "a/b"}
    assert tomllib.loads(config.to_toml())["server"]["mime"] == {".x": "a/b"}


# About to serve


def test_check_serving_names_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match="nothing to serve"):
        Config().check_serving()
    with pytest.raises(ConfigError, match=r"root: '.*nowhere' does not exist"):
        Config(root=tmp_path / "nowhere").check_serving(1)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is not a folder"):
        Config(root=tmp_path / "file").check_serving()
    with pytest.raises(ConfigError, match="role: 'frontend' needs upstream"):
        Config(role="frontend", root=tmp_path).check_serving()
    Config(root=tmp_path).check_serving()
    Config().check_serving(1)
    Config(role="frontend", upstream="http://127.0.0.1:1").check_serving()
