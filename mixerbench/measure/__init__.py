"""What a model costs: parameters, multiply-adds, images per second, latency, memory, energy.

``model_costs.measure_model`` measures all of it, ``interleaved.measure_interleaved`` that of many
models side by side; ``flops``, ``speed``, ``memory`` and ``energy`` measure one thing each;
``hardware`` names the machine. Every measurement restores the model and the random numbers.
"""
