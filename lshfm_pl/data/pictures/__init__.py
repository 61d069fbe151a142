"""Pictures without any labels, from which a student learns with a teacher."""
