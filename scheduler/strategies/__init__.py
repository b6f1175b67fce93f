"""Strategies: writers of schedules. Each says which blocks take which steps and what they see."""
