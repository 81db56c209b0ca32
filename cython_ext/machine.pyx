"""The runtime of protocol modules: states, events and tables.

The rules:

- A state function does its state's work and returns an event. It knows no other state.
- A table maps (state, event) to the next state. It is data: given from Python, stored as bytes, and a single byte can
  be stored while the machine runs.
- A protocol module also tells how a request begins (for one that was kept) and how a response does.
- A state without a function is where the machine rests: either the request is over, or something from outside (bytes,
  an answer, a clock) must come first, and comes as an event.
"""
from libc.stdint cimport uint8_t
from libc.string cimport memset


cdef enum:
    STEPS_MAX = 4 * STATES_MAX      # no sensible table needs as many from one rest to the next


cdef int run_machine(const Machine *machine, int state, void *engine, void *connection, void *request) noexcept nogil:
    cdef StateFunction function
    cdef int _steps
    for _steps in range(STEPS_MAX):
        if state == STATE_REFUSED:
            return state
        function = machine.functions[state]
        if function is NULL:
            return state
        state = machine.next_state[state][function(engine, connection, request)]
    return STATE_REFUSED        # a table that goes round in a circle


cdef int resume_machine(const Machine *machine, int state, int event, void *engine, void *connection,
                        void *request) noexcept nogil:
    return run_machine(machine, machine.next_state[state][event], engine, connection, request)


cdef class Protocol:
    """The states and events of a protocol module, by name, in the order of their numbers."""

    def __cinit__(self):
        memset(self.functions, 0, sizeof(self.functions))

    cdef fill(self, Machine *machine, table):
        """Stores functions and `table`, a mapping of (state, event) to state by names. KeyError: an unknown name."""
        cdef int state
        memset(machine, 0, sizeof(Machine))
        memset(machine.next_state, STATE_REFUSED, sizeof(machine.next_state))
        for state in range(len(self.states)):
            machine.functions[state] = self.functions[state]
        machine.read_head = self.read_head
        machine.write_head = self.write_head
        machine.has_lines = self.has_lines
        for (source, event), target in table.items():
            machine.next_state[self.state_number(source)][self.event_number(event)] = <uint8_t>self.state_number(target)

    def state_number(self, name):
        """The number of the state called `name`; KeyError where there is none."""
        if name not in self.states:
            raise KeyError(f"the {self.name} protocol has no state {name!r}: it has {', '.join(self.states)}")
        return self.states.index(name)

    def event_number(self, name):
        """The number of the event called `name`; KeyError where there is none."""
        if name not in self.events:
            raise KeyError(f"the {self.name} protocol has no event {name!r}: it has {', '.join(self.events)}")
        return self.events.index(name)
