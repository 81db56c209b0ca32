"""Answers that the kernel side gives by itself (kernel_side/answer.bpf.h), without user mode having a part in them.

The rules:

- What the kernel side sends of an image is a rendering: a whole response in memory, with its Date. It is valid until
  its second, the object's time, or the trust in its file is over. Then the next request comes up as any hit does; user
  mode answers it, and renders anew. So an image costs a rendering a second, and nothing where nobody asks.
- An image has two renderings in turn. One is written again only when the head of the ring has passed all entries that
  may point to it, and no completion waits: bytes in flight don't change (law 4).
- Order (law 1): `done` says to the kernel side that nothing is owed, and `out_user` how many bytes user mode will have
  sent by then, counted when a response is taken and told before it is sent. Before anything of a connection is looked
  at that was handed up after an answer, that answer has left, or what is left of it has become an Output.
- A withdrawal sets the generation to 0, which is looked at again under the kernel side's lock. A purge then waits until
  the ring is empty up to what had been written (law 3), as does who closes a descriptor (law 4).
- The kernel side counts what it answers, and those counters are added to user mode's where they are told (law 7). With
  an access log it tells of each answer, too, and wakes user mode for a few hundred of them. These are not read faster
  than the log takes their lines.
"""
from libc.errno cimport EAGAIN, ENOMEM
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from batchbridge.cython_ext.accesslog cimport log_has_room, log_line
from batchbridge.cython_ext.cache cimport (
    OBJECT_FILE, OBJECT_STALE, OBJECT_UNLINKED, CacheObject, cache_mark_visited)
from batchbridge.cython_ext.connection cimport connection_peer
from batchbridge.cython_ext.core cimport (
    CONNECTION_OPEN, IS_CLOSING, IS_EOF, IS_FINAL, IS_HELD, IS_LAST, IS_PAUSED, IS_REFUSED, IS_WRITING, Connection,
    Engine)
from batchbridge.cython_ext.files cimport file_is_trusted
from batchbridge.cython_ext.parse cimport HEADER_REFERER, HEADER_USER_AGENT, Head
from batchbridge.cython_ext.reply cimport describe_known
from batchbridge.cython_ext.send cimport Response, response_copy, response_size_bytes_max, send_owed
from batchbridge.cython_ext.sender cimport (
    sender_bell, sender_completion, sender_has_completions, sender_has_passed, sender_wait, sender_wake, sender_written,
    sender_written_behind)
from batchbridge.cython_ext.states cimport DERIVE_CACHED_RESPONSE, EVENT_HIT, SEND_ENGINE
from batchbridge.cython_ext.tier cimport *


cdef extern from "compat.h" nogil:
    uint64_t bb_wall_ns() noexcept
    uint64_t bb_now_us() noexcept
    uint32_t bb_load_acquire(const uint32_t *) noexcept
    void bb_store_release(uint32_t *, uint32_t) noexcept
    void bb_store_relaxed(uint32_t *, uint32_t) noexcept


cdef enum:
    RENDERINGS_SIZE_BYTES_MAX = 67108864
    VISITS_MAX = 16                     # that the cache can tell apart
    NOT_IDLE = (IS_WRITING | IS_HELD | IS_EOF | IS_LAST | IS_PAUSED | IS_REFUSED | IS_FINAL | IS_CLOSING)
    LEFT_UNKNOWN = 0xFFFFFFFFFFFFFFFF
    NS_PER_S = 1000000000
    LOG_PATIENCE_US = 500000


# --- life ------------------------------------------------------------------------------------------------------------

cdef int answer_prepare(Tier *tier) noexcept nogil:
    tier.answered = <Answered *>calloc(BB_IMAGES_MAX, sizeof(Answered))
    return 0 if tier.answered is not NULL else -ENOMEM


cdef void answer_free(Tier *tier) noexcept nogil:
    cdef uint32_t image
    if tier.answered is NULL:
        return
    for image in range(BB_IMAGES_MAX):
        free(tier.answered[image].renderings[0].bytes)
        free(tier.answered[image].renderings[1].bytes)
    free(tier.answered)
    tier.answered = NULL


cdef void object_left(void *context, CacheObject *object) noexcept nogil:
    """The cache's: an object was replaced, evicted, or its time is over."""
    cdef Tier *tier = <Tier *>context
    cdef uint32_t place = object.published
    while place:
        retire(tier, place - 1)
        place = tier.answered[place - 1].next


cdef int answer_begin(Engine *engine, Tier *tier) noexcept nogil:
    cdef int result = sender_bell(&tier.sender, engine.bell)
    if result < 0:
        return result
    engine.cache.withdraw = object_left
    engine.cache.withdraw_context = tier
    tier.words.tells_answers = engine.log.fd >= 0
    bb_store_release(&tier.words.answering, 1)
    return 0


cdef void answer_end(Tier *tier) noexcept nogil:
    bb_store_release(&tier.words.answering, 0)
    sender_wait(&tier.sender, sender_written_behind(&tier.sender))


cdef void answer_turn(Engine *engine, Tier *tier) noexcept nogil:
    # A thread that does nothing was given up.
    if (engine.draining or tier.sender.fd < 0) and tier.words.answering:
        answer_end(tier)
    if sender_has_completions(&tier.sender):
        take_failed(engine, tier)


cdef bint answer_sleeps(Tier *tier) noexcept nogil:
    sender_wake(&tier.sender)
    return not sender_has_completions(&tier.sender)


# --- connections -----------------------------------------------------------------------------------------------------

cdef void take_failed(Engine *engine, Tier *tier) noexcept nogil:
    """What could not be sent whole: user mode sends the rest, or learns that the connection is gone."""
    cdef uint64_t name = 0
    cdef int32_t result = 0
    cdef uint32_t row, image, sent
    cdef RowState *state
    cdef const Rendering *rendering
    cdef Connection *connection
    while sender_completion(&tier.sender, &name, &result):
        tier.failed_sends += 1
        row = bb_send_row(name)
        image = bb_send_image(name)
        if row >= tier.row_count or image >= BB_IMAGES_MAX:
            continue
        state = &tier.states[row]
        if not state.connection or not bb_send_is_of(name, tier.rows[row].cookie):
            continue                    # the connection was left
        connection = &engine.connections[state.connection - 1]
        if connection.state != CONNECTION_OPEN:
            continue
        rendering = &tier.answered[image].renderings[bb_send_buffer(name)]
        sent = <uint32_t>max(result, 0)
        if (result < 0 and result != -EAGAIN) or sent > rendering.length or connection.flags & IS_WRITING:
            engine.driver.tear_down(engine, connection)
            continue
        tier.unsent_bytes += rendering.length - sent
        send_owed(engine, connection, rendering.bytes + sent, rendering.length - sent)


cdef void answer_settle(Engine *engine, Tier *tier, uint32_t row) noexcept nogil:
    cdef uint32_t posted = bb_load_acquire(&tier.rows[row].out_kernel)
    if tier.rows[row].settled == posted or tier.states[row].settled == posted:
        return
    # Since something was handed up, nothing is posted on this connection: what counts is in the ring.
    sender_wait(&tier.sender, sender_written(&tier.sender))
    tier.states[row].settled = posted
    take_failed(engine, tier)


cdef void answer_promise(Tier *tier, const Connection *connection) noexcept nogil:
    bb_store_release(&tier.rows[connection.row - 1].out_user, connection.promised)


cdef bint is_idle(const Connection *connection) noexcept nogil:
    return (connection.state == CONNECTION_OPEN and not connection.flags & NOT_IDLE and not connection.owed
            and connection.input is NULL and not connection.posted_length)


cdef void answer_done(Tier *tier, const Connection *connection) noexcept nogil:
    cdef uint32_t row = connection.row - 1
    if is_idle(connection):
        bb_store_release(&tier.rows[row].done, tier.states[row].received)


cdef void answer_part(Tier *tier, const Connection *connection) noexcept nogil:
    cdef uint32_t row = connection.row - 1
    cdef bb_row *shared = &tier.rows[row]
    cdef uint32_t posted
    bb_store_release(&shared.closing, 1)
    if shared.done == bb_load_acquire(&shared.up) and not shared.closed:
        # It may be being answered at this very moment.
        sender_wait(&tier.sender, sender_written_behind(&tier.sender))
        return
    posted = bb_load_acquire(&shared.out_kernel)
    if shared.settled != posted and tier.states[row].settled != posted:
        sender_wait(&tier.sender, sender_written(&tier.sender))


cdef bint answer_keeps_alive(Engine *engine, Connection *connection) noexcept nogil:
    cdef uint32_t row = connection.row - 1
    cdef uint32_t answered = bb_load_acquire(&engine.tier.rows[row].answered)
    cdef uint64_t age_ns
    cdef int64_t left_us
    if answered == engine.tier.states[row].answered or not is_idle(connection):
        return False
    engine.tier.states[row].answered = answered
    age_ns = <uint64_t>(<uint32_t>(bb_now_us() * 1000 >> BB_ANSWERED_UNIT_SHIFT) - answered) << BB_ANSWERED_UNIT_SHIFT
    left_us = <int64_t>engine.limits.idle_timeout_us - <int64_t>(age_ns // 1000)
    if left_us <= 0:
        return False
    connection.deadline_us = engine.now_us + <uint64_t>left_us
    return True


# --- images ----------------------------------------------------------------------------------------------------------

cdef void answer_join(Tier *tier, uint32_t image, CacheObject *object) noexcept nogil:
    cdef Answered *answered = &tier.answered[image]
    answered.previous = 0
    answered.next = object.published
    if object.published:
        tier.answered[object.published - 1].previous = image + 1
    object.published = image + 1


cdef void answer_leave(Tier *tier, uint32_t image, CacheObject *object) noexcept nogil:
    cdef Answered *answered = &tier.answered[image]
    retire(tier, image)
    answer_count(tier, image, object)
    if answered.next:
        tier.answered[answered.next - 1].previous = answered.previous
    if answered.previous:
        tier.answered[answered.previous - 1].next = answered.next
    else:
        object.published = answered.next
    answered.previous = 0
    answered.next = 0


cdef void retire(Tier *tier, uint32_t image) noexcept nogil:
    """The kernel side sends the image's rendering no more, but for what it has posted.

    How far that is, is asked when it has to be known: it takes a lock, and a purge may retire all of them.
    """
    cdef Answered *answered = &tier.answered[image]
    if tier.answers[image].generation == 0:
        return
    bb_store_release(&tier.answers[image].generation, 0)
    answered.renderings[answered.current].left_at = LEFT_UNKNOWN


cdef void note_left(Tier *tier, Rendering *rendering) noexcept nogil:
    if rendering.left_at == LEFT_UNKNOWN:
        rendering.left_at = sender_written_behind(&tier.sender)


cdef uint64_t valid_until_ns(const Engine *engine, const CacheObject *object) noexcept nogil:
    """When a rendering made now is to be replaced: at the end of the second that its Date tells, of a step of its Age,
    of its object's time, or of the trust in its file; 0: it would be at once."""
    cdef uint64_t until_us = object.expires_us if object.expires_us else <uint64_t>-1
    cdef uint64_t now_ns = bb_now_us() * 1000
    cdef int64_t left_ns = (engine.wall_s + 1) * NS_PER_S - <int64_t>bb_wall_ns()
    if object.flags & OBJECT_FILE:
        until_us = min(until_us, object.checked_us + engine.limits.file_revalidate_us)
    else:
        until_us = min(until_us, object.checked_us + ((engine.now_us - object.checked_us) // 1000000 + 1) * 1000000)
    if left_ns <= 0 or left_ns > NS_PER_S or until_us <= engine.now_us:
        return 0
    return min(now_ns + <uint64_t>left_ns, min(until_us, engine.now_us + 1000000) * 1000)


cdef bint has_room(Tier *tier, Rendering *rendering, uint32_t needed) noexcept nogil:
    """Whether the rendering may be written: its bytes are not on their way, and there are enough of them."""
    note_left(tier, rendering)
    if not sender_has_passed(&tier.sender, rendering.left_at):
        return False
    # In this order: what fell short is told before the head passes, and then the rest of it is still to be sent.
    if sender_has_completions(&tier.sender):
        return False
    if rendering.size_bytes >= needed:
        return True
    if tier.renderings_size_bytes + needed - rendering.size_bytes > RENDERINGS_SIZE_BYTES_MAX:
        return False
    free(rendering.bytes)
    tier.renderings_size_bytes -= rendering.size_bytes
    rendering.size_bytes = 0
    rendering.bytes = <char *>malloc(needed)
    if rendering.bytes is NULL:
        return False
    rendering.size_bytes = needed
    tier.renderings_size_bytes += needed
    return True


cdef void answer_render(Engine *engine, Tier *tier, uint32_t image) noexcept nogil:
    cdef CacheObject *object = tier.objects[image]
    cdef Answered *answered = &tier.answered[image]
    cdef bb_rendering *answer = &tier.answers[image]
    cdef Rendering *rendering = &answered.renderings[1 - answered.current]
    cdef Response response
    cdef uint64_t until_ns
    if (object is NULL or not tier.words.answering or (answer.generation and bb_now_us() * 1000 < answer.expires_ns)
            or object.flags & (OBJECT_UNLINKED | OBJECT_STALE)
            or engine.machine.next_state[<int>DERIVE_CACHED_RESPONSE][<int>EVENT_HIT] != SEND_ENGINE):
        return
    answer_count(tier, image, object)
    until_ns = valid_until_ns(engine, object)
    if until_ns == 0:
        return
    describe_known(engine, &tier.published[image].head, object, &response)
    if not has_room(tier, rendering, response_size_bytes_max(&response)):
        return
    retire(tier, image)
    note_left(tier, &answered.renderings[answered.current])     # it will have passed by the next time
    rendering.length = response_copy(engine, &response, rendering.bytes)
    answered.current = 1 - answered.current
    answered.body_length = <uint32_t>response.body_length
    answered.generation += 1
    if answered.generation == 0:
        answered.generation = 1
    answer.address = <uint64_t><size_t>rendering.bytes
    answer.length = rendering.length
    answer.buffer = answered.current
    answer.image_generation = tier.images[image].generation
    answer.expires_ns = until_ns
    bb_store_release(&answer.generation, answered.generation)
    tier.rendered += 1


cdef bint answer_count(Tier *tier, uint32_t image, CacheObject *object) noexcept nogil:
    cdef uint64_t hits = tier.answers[image].hits - tier.answered[image].hits, _hit
    tier.answered[image].hits += hits
    for _hit in range(min(hits, <uint64_t>VISITS_MAX)):
        cache_mark_visited(object)
    return hits != 0


cdef void answer_distrust(Engine *engine, Tier *tier) noexcept nogil:
    cdef uint32_t image
    cdef int size
    cdef CacheObject *object
    for size in range(SIZES):
        for image in range(tier.places[size].first, tier.places[size].first + tier.places[size].made):
            object = tier.objects[image]
            if object is not NULL and object.flags & OBJECT_FILE and not file_is_trusted(engine, object):
                retire(tier, image)


cdef void answer_purged(Tier *tier) noexcept nogil:
    sender_wait(&tier.sender, sender_written_behind(&tier.sender))


# --- the access log --------------------------------------------------------------------------------------------------

cdef bint answer_waits(const Engine *engine, Tier *tier) noexcept nogil:
    if not tier.words.tells_answers or log_has_room(engine):
        tier.held_since_us = 0
        return False
    # A log that nobody takes lines off must not hold the server up for longer, nor again before there was room.
    if tier.held_since_us == 0:
        tier.held_since_us = engine.now_us
    tier.is_held = engine.now_us - tier.held_since_us < LOG_PATIENCE_US
    return tier.is_held


cdef void answer_log(Engine *engine, const Tier *tier, uint32_t row, const bb_hit *hit) noexcept nogil:
    # Its place is not used for another image before this record was read.
    cdef const Head *head = &tier.published[hit.image].head
    cdef const char *data = <const char *>image_words(tier, hit.image)
    cdef const bb_peer *peer = &tier.states[row].peer
    cdef Connection client
    memset(&client, 0, sizeof(Connection))
    connection_peer(&client, <int>peer.family, <uint16_t>peer.port, peer.address)
    log_line(engine, &client, data + head.method_name.offset,
             head.target.offset + head.target.length + 9 - head.method_name.offset, 200,
             tier.answered[hit.image].body_length, data + head.known[<int>HEADER_REFERER].offset,
             head.known[<int>HEADER_REFERER].length, data + head.known[<int>HEADER_USER_AGENT].offset,
             head.known[<int>HEADER_USER_AGENT].length)
