"""What every worker shares. It knows token ids, bytes and frames; it imports no engine and nothing of the host.

protocol     frames over stdin and stdout, errors
loop         dispatch: one thread reads requests, one drives the engine
backend      what an engine side implements
request      a generation request, checked
output       committed tokens become text: detokenizing, stop strings, limits, draft marks
speculation  how far to draft, and the acceptance record
"""
