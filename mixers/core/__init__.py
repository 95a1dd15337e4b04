"""What all mixers rest on: the contract, the registry, the plan of a model, the checks."""
