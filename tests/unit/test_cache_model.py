"""Whatever is put into the cache, asked for and purged, in whatever order: a hit gives the bytes that were put in last,
nothing that was purged or is over its time is ever given, counts are those of a plain model, and what is cleared leaves
nothing behind. Which objects are evicted is the cache's own business, so the model lets any object be gone.
"""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from batchbridge.cython_ext.cache_testing import ALL, PREFIX, TAG, URL, Store

PATHS = [b"/", b"/a", b"/a/", b"/a/b", b"/a/b/c", b"/a/bc", b"/b/a", b"/b/a?x", b"/b/a?y/z", b"/c/d/e/f/g"]
HOSTS = [b"one", b"two"]
VARIANTS = [b"", b"\1gzip\0", b"\1br\0"]
TAGS = [b"t", b"u", b"tag", b""]

keys = st.one_of(
    st.sampled_from(PATHS).filter(lambda path: b"?" not in path),
    st.builds(
        lambda path, host, variant: path + b"\0" + host + b"\0" + variant,
        st.sampled_from(PATHS),
        st.sampled_from(HOSTS),
        st.sampled_from(VARIANTS),
    ),
)
lifetimes = st.integers(0, 30)
hosted = st.tuples(st.sampled_from(PATHS), st.sampled_from(HOSTS))
purges = st.one_of(
    st.tuples(st.just(URL), st.sampled_from(PATHS)),
    st.tuples(st.just(URL), hosted.map(b"\0".join)),
    st.tuples(st.just(PREFIX), st.sampled_from([b"", *PATHS, b"/c/d/", b"/c/d/e", b"/nothing/"])),
    st.tuples(st.just(TAG), st.sampled_from(TAGS)),
    st.just((ALL, b"")),
)  # fmt: skip


@dataclass
class Kept:
    payload: bytes
    tags: frozenset[bytes]
    expires_us: int
    is_file: bool
    stale: bool = False
    purged: bool = False


def is_named(key: bytes, kept: Kept, kind: int, text: bytes) -> bool:
    """Whether a purge is for this object: the plain definition."""
    target, *more = key.split(b"\0")
    if kind == TAG:
        return text in kept.tags
    if kind == PREFIX:
        return target.startswith(text)
    if kind == URL:
        wanted, *host = text.split(b"\0")
        if kept.is_file and b"?" in wanted and target == wanted.partition(b"?")[0]:
            return True
        return target == wanted and (not more or not host or more[0].lower() == host[0].lower())
    return True


class CacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_us = 1000
        self.count = 0
        self.model: dict[bytes, Kept] = {}
        self.held: list[tuple[int, bytes]] = []

    @initialize(size=st.sampled_from([0, 2_000, 6_000, 20_000, 1 << 24]))
    def begin(self, size: int) -> None:
        self.size = size
        self.store = Store(size)

    def is_evicting(self) -> bool:
        stats = self.store.stats()
        return bool(stats["evictions"] or stats["refused"])

    @rule(
        key=keys, tags=st.lists(st.sampled_from(TAGS), max_size=4), length=st.integers(0, 900), ttl=st.integers(0, 30)
    )
    def insert(self, key: bytes, tags: list[bytes], length: int, ttl: int) -> None:
        self.count += 1
        payload = b"%d " % self.count + bytes(length)
        is_file = b"\0" not in key
        expires_us = self.now_us + ttl if ttl else 0
        taken = self.store.insert(key, payload, tags=tags, expires_us=expires_us, is_file=is_file)
        self.model.pop(key, None)
        if taken:
            self.model[key] = Kept(payload, frozenset(tags), expires_us, is_file)
        assert taken or self.size < 1 << 24

    @rule(key=keys)
    def find(self, key: bytes) -> None:
        found = self.store.find(key, self.now_us)
        kept = self.model.get(key)
        must_be_gone = kept is None or kept.purged or (kept.expires_us and kept.expires_us <= self.now_us)
        if must_be_gone or kept is None:
            assert found is None
            self.model.pop(key, None)
        elif found is None:
            assert self.is_evicting(), key
            del self.model[key]
        else:
            assert found == (kept.payload, kept.stale)

    @rule(key=keys)
    def remove(self, key: bytes) -> None:
        if self.store.find(key, self.now_us):
            self.store.remove(key)
            del self.model[key]

    @rule(key=keys)
    def hold(self, key: bytes) -> None:
        if self.store.find(key, self.now_us) and len(self.held) < 4:
            self.held.append((self.store.hold(key), self.model[key].payload))

    @rule()
    def drop(self) -> None:
        for number, payload in self.held:
            assert self.store.drop(number) == payload
        self.held.clear()

    @rule(by_us=st.integers(1, 20))
    def wait(self, by_us: int) -> None:
        self.now_us += by_us

    @rule(what=purges, soft=st.booleans())
    def purge(self, what: tuple[int, bytes], soft: bool) -> None:
        kind, text = what
        hit = [kept for key, kept in self.model.items() if is_named(key, kept, kind, text) and not kept.purged]
        count = self.store.purge(kind, text, soft)
        # Some may have been evicted; what is over its time may be there still, and is counted then.
        assert count <= len(hit)
        if not self.is_evicting():
            over = [kept for kept in hit if kept.expires_us and kept.expires_us <= self.now_us]
            assert len(hit) - len(over) <= count
        for kept in hit:
            kept.stale = kept.stale or soft
            kept.purged = kept.purged or not soft

    @invariant()
    def figures_agree(self) -> None:
        stats = self.store.stats()
        assert stats["objects"] <= sum(not kept.purged for kept in self.model.values())
        assert stats["size_bytes"] <= self.size
        assert stats["unreclaimed"] == 0  # so few are reclaimed at once
        assert stats["leaving"] <= len(self.held)

    def teardown(self) -> None:
        for key in list(self.model):
            self.find(key)
        self.store.purge(ALL)
        self.drop()
        stats = self.store.stats()
        left = ("objects", "size_bytes", "unreclaimed", "groups", "leaving", "leaving_size_bytes")
        assert [stats[name] for name in left] == [0] * 6


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=150, stateful_step_count=60)
