"""What keeps a long run alive: validation, resumable captioning, saved state, processes, log, memory."""
