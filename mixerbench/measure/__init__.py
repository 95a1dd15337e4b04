"""What a model costs: parameters, multiply-adds, images per second, latency, memory.

``profile.measure_model`` measures all of it; ``flops``, ``speed`` and ``memory`` one thing
each; ``hardware`` says on what. Every measurement leaves the model and the random numbers
as it found them.
"""
