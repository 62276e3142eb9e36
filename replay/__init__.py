"""A market as it was, the shipped policy, and the bill: capacity in virtual time.

Times are seconds from the start of the trace, prices are per instance and hour, and every instance has one unit.
"""
