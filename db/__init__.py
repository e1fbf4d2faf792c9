"""Facts and decisions: models, repositories, services. No Celery, no network but PostgreSQL."""
