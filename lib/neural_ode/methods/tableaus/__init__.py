"""The coefficients of Runge-Kutta methods as data, with their sources."""
