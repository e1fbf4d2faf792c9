-- What an alert goes through, what the platform watches itself by, and who is told of it by which way.

-- Nobody waits long for these: they are new, nullable, and hold nothing yet, and of alerts there are few.
ALTER TABLE monitoring_alerts ADD COLUMN episode TEXT;
ALTER TABLE monitoring_alerts ADD COLUMN started_at TIMESTAMP WITH TIME ZONE;
ALTER TABLE monitoring_alerts ADD COLUMN assigned_to_id BIGINT;
ALTER TABLE monitoring_alerts ADD COLUMN resolved_by_id BIGINT;
ALTER TABLE monitoring_alerts ADD COLUMN cleared_at TIMESTAMP WITH TIME ZONE;
ALTER TABLE monitoring_alerts ADD COLUMN settled_at TIMESTAMP WITH TIME ZONE;
-- squawk-ignore adding-foreign-key-constraint, constraint-missing-not-valid
ALTER TABLE monitoring_alerts ADD CONSTRAINT fk_monitoring_alerts_assigned_to_id
  FOREIGN KEY (assigned_to_id) REFERENCES users (id) ON DELETE SET NULL;
-- squawk-ignore adding-foreign-key-constraint, constraint-missing-not-valid
ALTER TABLE monitoring_alerts ADD CONSTRAINT fk_monitoring_alerts_resolved_by_id
  FOREIGN KEY (resolved_by_id) REFERENCES users (id) ON DELETE SET NULL;
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX ix_monitoring_alerts_assigned_to_id ON monitoring_alerts (assigned_to_id);
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX ix_monitoring_alerts_resolved_by_id ON monitoring_alerts (resolved_by_id);
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX ix_monitoring_alerts_uncleared ON monitoring_alerts (id) WHERE cleared_at IS NULL;
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX ix_monitoring_alerts_unsettled ON monitoring_alerts (id) WHERE settled_at IS NULL;
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX ix_monitoring_alerts_fingerprint ON monitoring_alerts (fingerprint, episode);
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX ix_monitoring_alerts_resolved_at ON monitoring_alerts (resolved_at) WHERE resolved_at IS NOT NULL;

CREATE TABLE alert_events (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  alert_id BIGINT NOT NULL,
  at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
  kind TEXT NOT NULL,
  actor TEXT NOT NULL,
  message TEXT,
  CONSTRAINT pk_alert_events PRIMARY KEY (id),
  CONSTRAINT ck_alert_events_kind CHECK (kind IN ('pending', 'raised', 'changed', 'acknowledged', 'assigned', 'note', 'silenced', 'notified', 'not_notified', 'resolved')),
  CONSTRAINT fk_alert_events_alert_id FOREIGN KEY(alert_id) REFERENCES monitoring_alerts (id) ON DELETE CASCADE
);
CREATE INDEX ix_alert_events_alert_id ON alert_events (alert_id, id);

CREATE TABLE notification_channels (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  name TEXT NOT NULL,
  kind TEXT NOT NULL,
  encrypted_config TEXT NOT NULL,
  rate_limit BIGINT DEFAULT '10' NOT NULL,
  disabled_at TIMESTAMP WITH TIME ZONE,
  disabled_because TEXT,
  is_broken BOOLEAN DEFAULT 'false' NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  version_id BIGINT DEFAULT '1' NOT NULL,
  CONSTRAINT pk_notification_channels PRIMARY KEY (id),
  CONSTRAINT ck_notification_channels_kind CHECK (kind IN ('apprise', 'webhook', 'smtp')),
  CONSTRAINT ck_notification_channels_rate_limit CHECK (rate_limit BETWEEN 1 AND 1000),
  CONSTRAINT ck_notification_channels_disabled_because CHECK ((disabled_at IS NULL) = (disabled_because IS NULL)),
  CONSTRAINT ck_notification_channels_is_broken CHECK (NOT is_broken OR disabled_at IS NOT NULL)
);
CREATE UNIQUE INDEX uq_notification_channels_name ON notification_channels (lower(name));

CREATE TABLE notification_routes (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  channel_id BIGINT NOT NULL,
  severity TEXT DEFAULT 'low' NOT NULL,
  matchers JSONB DEFAULT '{}' NOT NULL,
  group_by TEXT[] DEFAULT '{}' NOT NULL,
  wait_seconds BIGINT DEFAULT '30' NOT NULL,
  repeat_seconds BIGINT DEFAULT '14400' NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  CONSTRAINT pk_notification_routes PRIMARY KEY (id),
  CONSTRAINT ck_notification_routes_severity CHECK (severity IN ('low', 'medium', 'high', 'critical')),
  CONSTRAINT ck_notification_routes_wait_seconds CHECK (wait_seconds BETWEEN 0 AND 3600),
  CONSTRAINT ck_notification_routes_repeat_seconds CHECK (repeat_seconds = 0 OR repeat_seconds BETWEEN 60 AND 2592000),
  CONSTRAINT ck_notification_routes_matchers CHECK (jsonb_typeof(matchers) = 'object'),
  CONSTRAINT fk_notification_routes_channel_id FOREIGN KEY(channel_id) REFERENCES notification_channels (id) ON DELETE CASCADE
);
CREATE INDEX ix_notification_routes_channel_id ON notification_routes (channel_id, id);

CREATE TABLE notifications (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  alert_id BIGINT NOT NULL,
  channel_id BIGINT NOT NULL,
  transition TEXT NOT NULL,
  sequence BIGINT DEFAULT '0' NOT NULL,
  group_key TEXT NOT NULL,
  state TEXT DEFAULT 'waiting' NOT NULL,
  job_id UUID,
  error TEXT,
  due_at TIMESTAMP WITH TIME ZONE NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  queued_at TIMESTAMP WITH TIME ZONE,
  finished_at TIMESTAMP WITH TIME ZONE,
  CONSTRAINT pk_notifications PRIMARY KEY (id),
  CONSTRAINT ck_notifications_state CHECK (state IN ('waiting', 'queued', 'sent', 'failed')),
  CONSTRAINT ck_notifications_transition CHECK (transition IN ('raised', 'repeated', 'resolved')),
  CONSTRAINT ck_notifications_finished_at CHECK ((state IN ('sent', 'failed')) = (finished_at IS NOT NULL)),
  CONSTRAINT ck_notifications_queued_at CHECK (state NOT IN ('queued', 'sent') OR queued_at IS NOT NULL),
  CONSTRAINT ck_notifications_sequence CHECK ((transition = 'repeated') = (sequence > 0)),
  CONSTRAINT uq_notifications_alert_id_transition_sequence_channel_id UNIQUE (alert_id, transition, sequence, channel_id),
  CONSTRAINT fk_notifications_alert_id FOREIGN KEY(alert_id) REFERENCES monitoring_alerts (id) ON DELETE CASCADE,
  CONSTRAINT fk_notifications_channel_id FOREIGN KEY(channel_id) REFERENCES notification_channels (id) ON DELETE CASCADE,
  CONSTRAINT fk_notifications_job_id FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE SET NULL
);
CREATE INDEX ix_notifications_channel_id ON notifications (channel_id, queued_at);
CREATE INDEX ix_notifications_job_id ON notifications (job_id);
CREATE INDEX ix_notifications_open ON notifications (channel_id, group_key, id) WHERE state IN ('waiting', 'queued');

CREATE TABLE silences (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  matchers JSONB NOT NULL,
  comment TEXT,
  starts_at TIMESTAMP WITH TIME ZONE NOT NULL,
  ends_at TIMESTAMP WITH TIME ZONE NOT NULL,
  ended_at TIMESTAMP WITH TIME ZONE,
  created_by_id BIGINT,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  CONSTRAINT pk_silences PRIMARY KEY (id),
  CONSTRAINT ck_silences_ends_at CHECK (ends_at > starts_at AND ends_at - starts_at <= interval '90 days'),
  CONSTRAINT ck_silences_matchers CHECK (jsonb_typeof(matchers) = 'object' AND matchers <> '{}'),
  CONSTRAINT fk_silences_created_by_id FOREIGN KEY(created_by_id) REFERENCES users (id) ON DELETE SET NULL
);
CREATE INDEX ix_silences_created_by_id ON silences (created_by_id);
CREATE INDEX ix_silences_ends_at ON silences (ends_at);

CREATE TABLE maintenance_windows (
  id BIGINT GENERATED ALWAYS AS IDENTITY,
  title TEXT NOT NULL,
  matchers JSONB NOT NULL,
  starts_at TIMESTAMP WITH TIME ZONE NOT NULL,
  ends_at TIMESTAMP WITH TIME ZONE NOT NULL,
  ended_at TIMESTAMP WITH TIME ZONE,
  created_by_id BIGINT,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  CONSTRAINT pk_maintenance_windows PRIMARY KEY (id),
  CONSTRAINT ck_maintenance_windows_ends_at CHECK (ends_at > starts_at AND ends_at - starts_at <= interval '90 days'),
  CONSTRAINT ck_maintenance_windows_matchers CHECK (jsonb_typeof(matchers) = 'object' AND matchers <> '{}'),
  CONSTRAINT fk_maintenance_windows_created_by_id FOREIGN KEY(created_by_id) REFERENCES users (id) ON DELETE SET NULL
);
CREATE INDEX ix_maintenance_windows_created_by_id ON maintenance_windows (created_by_id);
CREATE INDEX ix_maintenance_windows_ends_at ON maintenance_windows (ends_at);

CREATE TABLE alert_rules (
  name TEXT NOT NULL,
  enabled BOOLEAN DEFAULT 'true' NOT NULL,
  threshold FLOAT,
  for_seconds BIGINT,
  severity TEXT,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  CONSTRAINT pk_alert_rules PRIMARY KEY (name),
  CONSTRAINT ck_alert_rules_severity CHECK (severity IN ('low', 'medium', 'high', 'critical')),
  CONSTRAINT ck_alert_rules_for_seconds CHECK (for_seconds BETWEEN 0 AND 604800)
);

CREATE TRIGGER ops_refuse_retired_key BEFORE INSERT OR UPDATE OF encrypted_config ON notification_channels
  FOR EACH ROW EXECUTE FUNCTION ops_refuse_retired_key('encrypted_config');

-- What only says how far the ticks have come is no fact.
SELECT ops_audit_watch('monitoring_alerts', '{}', '{updated_at,settled_at}', 'alert');
SELECT ops_audit_watch('alert_events', '{}', '{}', 'alert_event');
SELECT ops_audit_watch('alert_rules', '{}', '{updated_at}', 'alert_rule');
SELECT ops_audit_watch('notification_channels', '{encrypted_config}', '{updated_at,version_id}', 'channel');
SELECT ops_audit_watch('notification_routes', '{}', '{}', 'route');
SELECT ops_audit_watch('notifications', '{}', '{}', 'notification');
SELECT ops_audit_watch('silences', '{}', '{}', 'silence');
SELECT ops_audit_watch('maintenance_windows', '{}', '{}', 'maintenance');

-- What had ended before is over, and nobody need be told of it any more.
UPDATE monitoring_alerts SET cleared_at = resolved_at, settled_at = resolved_at WHERE status = 'resolved';
