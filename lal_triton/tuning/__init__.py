"""Launch configurations for the present device: found by `search`, kept by `cache`, given to a step by `choice`."""
