"""The same derivatives, faster. Without this folder everything still runs."""
