-- Everything in the current schema, as the catalog says it: kind and name of an object, and what makes it what it is.
-- No numbers of objects or columns: they differ where something was removed and made again.
WITH here AS (SELECT current_schema()::regnamespace::oid AS schema)
SELECT 'schema ' || nspname, concat_ws(' ', nspowner::regrole,
  (SELECT string_agg(a, ' ' ORDER BY a) FROM unnest(nspacl::text[]) a))
FROM here JOIN pg_namespace n ON n.oid = schema
UNION ALL
SELECT 'relation ' || relname, concat_ws(' ', relkind, relpersistence, relowner::regrole, reloptions::text,
  relrowsecurity, relforcerowsecurity, relreplident, pg_get_expr(relpartbound, c.oid), pg_get_partkeydef(c.oid),
  (SELECT string_agg(a, ' ' ORDER BY a) FROM unnest(relacl::text[]) a))
FROM here JOIN pg_class c ON relnamespace = schema
UNION ALL
SELECT 'column ' || relname || '.' || attname, concat_ws(' ', format_type(atttypid, atttypmod),
  CASE WHEN attnotnull THEN 'NOT NULL' END, attidentity, attgenerated, nullif(attcollation, 0)::regcollation,
  attstorage, attcompression, pg_get_expr(adbin, adrelid),
  (SELECT string_agg(a, ' ' ORDER BY a) FROM unnest(attacl::text[]) a))
FROM here JOIN pg_class c ON relnamespace = schema JOIN pg_attribute ON attrelid = c.oid
  LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attnum > 0 AND NOT attisdropped AND relkind IN ('r', 'p', 'v', 'm', 'f', 'c')
UNION ALL
SELECT 'constraint ' || conrelid::regclass || '.' || conname, concat_ws(' ', pg_get_constraintdef(o.oid), convalidated)
FROM here JOIN pg_constraint o ON connamespace = schema
UNION ALL
SELECT 'index ' || relname, concat_ws(' ', pg_get_indexdef(indexrelid), indisvalid)
FROM here JOIN pg_class c ON relnamespace = schema JOIN pg_index ON indexrelid = c.oid
UNION ALL
SELECT 'trigger ' || relname || '.' || tgname, concat_ws(' ',
  -- Numbers of columns, which another ADD COLUMN changes; their names stand beside them.
  CASE WHEN tgname LIKE 'ops\_audit\_%' THEN regexp_replace(pg_get_triggerdef(t.oid), '''\{[0-9,]*\}''', '''{#}''')
    ELSE pg_get_triggerdef(t.oid) END, tgenabled)
FROM here JOIN pg_class c ON relnamespace = schema JOIN pg_trigger t ON tgrelid = c.oid
WHERE NOT tgisinternal
UNION ALL
SELECT 'function ' || p.oid::regprocedure, concat_ws(E'\n', proowner::regrole,
  (SELECT string_agg(a, ' ' ORDER BY a) FROM unnest(proacl::text[]) a),
  CASE WHEN prokind <> 'a' THEN pg_get_functiondef(p.oid) END)
FROM here JOIN pg_proc p ON pronamespace = schema
UNION ALL
SELECT 'sequence ' || relname, concat_ws(' ', seqtypid::regtype, seqstart, seqincrement, seqmax, seqmin, seqcache,
  seqcycle)
FROM here JOIN pg_class c ON relnamespace = schema JOIN pg_sequence ON seqrelid = c.oid
UNION ALL
SELECT 'type ' || typname, concat_ws(' ', typtype, typowner::regrole, format_type(typbasetype, typtypmod), typnotnull,
  typdefault, (SELECT string_agg(a, ' ' ORDER BY a) FROM unnest(typacl::text[]) a),
  (SELECT string_agg(enumlabel, ' ' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid))
FROM here JOIN pg_type t ON typnamespace = schema WHERE typelem = 0
UNION ALL
SELECT 'policy ' || relname || '.' || polname, concat_ws(' ', polcmd, polpermissive, polroles::regrole[]::text,
  pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
FROM here JOIN pg_class c ON relnamespace = schema JOIN pg_policy ON polrelid = c.oid
UNION ALL
SELECT 'rule ' || relname || '.' || rulename, pg_get_ruledef(r.oid)
FROM here JOIN pg_class c ON relnamespace = schema JOIN pg_rewrite r ON ev_class = c.oid
UNION ALL
SELECT 'statistics ' || stxname, pg_get_statisticsobjdef(s.oid)
FROM here JOIN pg_statistic_ext s ON stxnamespace = schema
UNION ALL
SELECT 'default privilege ' || concat_ws(' ', defaclrole::regrole, defaclobjtype),
  (SELECT string_agg(a, ' ' ORDER BY a) FROM unnest(defaclacl::text[]) a)
FROM here JOIN pg_default_acl ON defaclnamespace = schema
