-- squawk-ignore ban-drop-table
DROP TABLE notifications, notification_routes, notification_channels, alert_events, alert_rules, silences,
  maintenance_windows;
SELECT ops_audit_watch('monitoring_alerts', '{}', '{updated_at}', 'alert');
DROP INDEX ix_monitoring_alerts_uncleared;
DROP INDEX ix_monitoring_alerts_unsettled;
DROP INDEX ix_monitoring_alerts_fingerprint;
DROP INDEX ix_monitoring_alerts_resolved_at;
ALTER TABLE monitoring_alerts DROP COLUMN episode, DROP COLUMN started_at, DROP COLUMN assigned_to_id,
  DROP COLUMN resolved_by_id, DROP COLUMN cleared_at, DROP COLUMN settled_at;
