"""What keeps a long run alive: validation, resumable captioning, saved state, child processes, log, memory."""
