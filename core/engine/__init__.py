"""The engine: thousands of interventions in one walk over the layers."""
