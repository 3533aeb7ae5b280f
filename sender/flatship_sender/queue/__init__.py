"""The sender's durable queue: what is to be sent, what is being sent, what was."""
