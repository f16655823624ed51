-- Version 5, as released. Never edited: schema.sql says what is current.

-- The same statuses in another form of the same check; no row is touched, which is when
-- SQLite's documentation lets the schema be written.
PRAGMA writable_schema = ON;
UPDATE sqlite_schema
SET sql = replace(sql, 'status IN (''pending'', ''starting'', ''running'', ''pausing'',
                          ''paused'', ''resuming'', ''stopping'', ''stopped'', ''missing'', ''error'',
                          ''hibernated'')',
    'status = ''running'' OR status = ''missing''
                          OR status = ''paused'' OR status = ''starting'' OR status = ''resuming''
                          OR status = ''pausing'' OR status = ''stopping'' OR status = ''stopped''
                          OR status = ''error'' OR status = ''pending'' OR status = ''hibernated''')
WHERE name = 'sandboxes';
PRAGMA writable_schema = RESET;
