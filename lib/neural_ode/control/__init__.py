"""How long a step may be: tolerances, controllers, the first step."""
