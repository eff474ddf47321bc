"""Live feedback: events that come over HTTP, kept durably, seen by the next request, rolled to files that training reads."""
