"""What every worker shares. It knows token ids, bytes and frames; it imports no engine and nothing of the host.

protocol     frames over stdin and stdout, errors
loop         dispatch: one thread reads requests, one drives the engine
backend      what an engine side implements
request      a generation request, checked
decoding     what a prompt becomes, and what verifying a proposal commits
grammar      output that keeps to a grammar
logprobs     what the model thought of a token
lanes        the sequences of a context, and what each remembers
output       committed tokens become text: detokenizing, stop strings, limits, draft marks
acceptance   what became of the tokens a draft proposed
controller   whether to draft and how far, from what it costs (costs, pace) and brings (calibration, lookup)
"""
