"""Media types by file name extension: a hash table that is filled once."""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from batchbridge.cython_ext.index cimport hash_bytes


cdef enum:
    BUCKETS = 4096
    EXTENSION_SIZE_MAX = 16


cdef MediaType *slot_of(MediaTypes *types, const char *extension, uint32_t length) noexcept nogil:
    """The slot of an extension: its own, or the empty one where it would be put."""
    cdef uint64_t index = hash_bytes(extension, length, 0)
    cdef MediaType *slot
    while True:
        slot = &types.items[index & (BUCKETS - 1)]
        if slot.extension_length == 0 or (
                slot.extension_length == length and memcmp(slot.extension, extension, length) == 0):
            return slot
        index += 1


cdef const MediaType *media_of(MediaTypes *types, const char *path, uint32_t length) noexcept nogil:
    cdef char extension[EXTENSION_SIZE_MAX]
    cdef uint32_t index, count = 0
    cdef const MediaType *slot
    cdef char byte
    while count < length and path[length - 1 - count] != c'.' and path[length - 1 - count] != c'/':
        count += 1
    if count == 0 or count >= length or count > EXTENSION_SIZE_MAX or path[length - 1 - count] != c'.':
        return &types.fallback
    for index in range(count):
        byte = path[length - count + index]
        extension[index] = byte + 32 if c'A' <= byte <= c'Z' else byte
    slot = slot_of(types, extension, count)
    return slot if slot.extension_length else &types.fallback


cdef media_prepare(MediaTypes *types, dict names, bytes fallback):
    if len(names) > BUCKETS // 2:
        raise ValueError(f"{len(names)} media types are more than {BUCKETS // 2}")
    for extension, name in names.items():
        if 0 < len(extension) <= EXTENSION_SIZE_MAX and len(name) <= sizeof(types.fallback.name):
            store(slot_of(types, extension, <uint32_t>len(extension)), extension, name)
    store(&types.fallback, b"", fallback)


cdef store(MediaType *slot, bytes extension, bytes name):
    slot.extension_length = <uint32_t>len(extension)
    memcpy(slot.extension, <const char *>extension, len(extension))
    slot.name_length = <uint32_t>min(len(name), sizeof(slot.name))
    memcpy(slot.name, <const char *>name, slot.name_length)
