"""Entries as a trail has them, as many as one likes."""

#: As a trail is: as many entries per resource however long it grows, a few actors with a great many.
FILL = """INSERT INTO audit_logs (action, resource_type, resource_id, actor_type, actor, actor_id, client, task_id,
    changes, details)
  SELECT (ARRAY['deployment.updated', 'job.succeeded', 'job.failed', 'alert.created', 'secret.opened'])[1 + n %% 5],
    (ARRAY['deployment', 'job', 'job', 'alert', 'secret'])[1 + n %% 5], (n / 50)::text, 'worker',
    'worker-' || n / 7 %% 20, n %% 50, 'ops@host', md5((n / 4)::text)::uuid,
    jsonb_build_object('status', jsonb_build_array('running', CASE WHEN n %% 997 = 0 THEN 'failed' ELSE 'success' END),
      'version', jsonb_build_array(NULL, 'v' || n / 10)),
    jsonb_build_object('name', 'aws/key-' || n %% 500, 'deployment_id', n, 'attempt', 1)
  FROM generate_series(%s::int, %s::int) n"""
