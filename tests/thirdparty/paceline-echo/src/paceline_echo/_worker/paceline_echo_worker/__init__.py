"""The worker of the echo engine: pure standard library, speaks Paceline's worker protocol."""
