# The HTTP module: its way from bytes to requests. The table between its states is data (batchbridge.machine).


cdef http_protocol()            # a machine.Protocol
