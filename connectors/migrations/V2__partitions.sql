-- Partitions of `tweets`, one a quarter of a year (UTC), by the milliseconds in the ids.

-- Makes the partition for the quarter that holds the millisecond `ms`, and says whether it did: not if it is there
-- already, and not if the default partition holds rows of that quarter (they stay there, which costs speed and nothing
-- else). Callers at the same time wait for each other. Creating a partition locks `tweets` until the transaction ends, so
-- call it in a transaction of its own; it waits for the lock 2 s at most, because writers queue up behind it.
CREATE FUNCTION feedmill_quarter_partition(ms bigint) RETURNS boolean LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
<<quarter_partition>>
DECLARE
    -- Not timestamptz: the arithmetic of months must not depend on the session's zone.
    quarter timestamp := date_trunc('quarter', timestamp '1970-01-01' + ms * interval '1 millisecond');
    name text := 'tweets_' || to_char(quarter, 'YYYY"_q"Q');
    low bigint := (extract(epoch FROM quarter) * 1000)::bigint << 16;
    high bigint := (extract(epoch FROM quarter + interval '3 months') * 1000)::bigint << 16;
    taken boolean;
BEGIN
    IF ms NOT BETWEEN -62135596800000 AND 127174492799999 THEN
        RAISE EXCEPTION 'no partition is made for the millisecond %: it lies before the year 1 or after 5999', ms
            USING ERRCODE = 'numeric_value_out_of_range';
    END IF;
    IF to_regclass(format('public.%I', name)) IS NOT NULL THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('feedmill_quarter_partition'));
    -- Another caller may have made it meanwhile. to_regclass may answer from this session's cache, which an advisory lock
    -- does not refresh; a query sees what is committed.
    IF EXISTS (SELECT FROM pg_class WHERE oid = ANY (SELECT inhrelid FROM pg_inherits
                                                     WHERE inhparent = 'public.tweets'::regclass)
                                      AND relname = quarter_partition.name) THEN
        RETURN false;
    END IF;
    SELECT EXISTS (SELECT FROM public.tweets_default WHERE id >= low AND id < high) INTO taken;
    IF NOT taken THEN
        BEGIN
            EXECUTE format('CREATE TABLE public.%I PARTITION OF public.tweets FOR VALUES FROM (%s) TO (%s)', name, low, high);
            RETURN true;
        EXCEPTION WHEN check_violation THEN
            -- A row came into the default partition since it was looked at.
            taken := true;
        END;
    END IF;
    RAISE NOTICE 'partition % is not made: tweets_default holds rows of that quarter', name;
    RETURN false;
END $$;

-- The same for each quarter from that of `from_ms` to that of `to_ms`; how many it made.
CREATE FUNCTION feedmill_ensure_partitions(from_ms bigint, to_ms bigint) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    quarter timestamp := date_trunc('quarter', timestamp '1970-01-01' + from_ms * interval '1 millisecond');
    last timestamp := timestamp '1970-01-01' + to_ms * interval '1 millisecond';
    made integer := 0;
BEGIN
    IF last - quarter > interval '36525 days' THEN
        RAISE EXCEPTION 'partitions for more than a century (% to %) are refused', quarter, last
            USING ERRCODE = 'program_limit_exceeded', HINT = 'Older rows go to the default partition.';
    END IF;
    WHILE quarter <= last LOOP
        IF feedmill_quarter_partition((extract(epoch FROM quarter) * 1000)::bigint) THEN
            made := made + 1;
        END IF;
        quarter := quarter + interval '3 months';
    END LOOP;
    RETURN made;
END $$;
