-- Who is active at :time_ms: until the full minute of the last day of activity at 00:00 UTC + :active_days days +
-- (user_id mod 86,400) seconds. Days that are infinite cannot be counted.
SELECT DISTINCT user_id AS viewer
FROM activity
WHERE CASE day
    WHEN 'infinity' THEN true
    WHEN '-infinity' THEN false
    ELSE :time_ms < (((day - date '1970-01-01')::bigint + :active_days) * 86400 + (user_id % 86400 + 86400) % 86400)
        / 60 * 60000
END
