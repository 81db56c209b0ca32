"""The states and events that all protocol modules share, by name, in the order of their numbers."""

STATE_NAMES = ("Derive Request", "Derive Cached Response", "Derive Miss Response", "Derive Uncached Response",
               "Derive Deferred Response", "Derive Remote Response", "Derive Status Response", "Defer Request",
               "Send Engine", "Await Bytes", "Await Turn", "Await Response", "Finished")
EVENT_NAMES = ("request", "incomplete", "malformed", "owed", "hit", "miss", "route", "no route", "status", "object",
               "listing", "absent", "unsuited", "failed", "server", "no server", "queued", "queue full", "answered",
               "timed out", "sent", "cold")
