-- A partition that Feedmill makes says so in its comment, of the same transaction: it was empty when it was attached, so
-- nothing need be compared because of it. Everything else is as in V2.

CREATE OR REPLACE FUNCTION feedmill_quarter_partition(ms bigint) RETURNS boolean LANGUAGE plpgsql
SET lock_timeout = '2s' AS $$
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
            EXECUTE format('COMMENT ON TABLE public.%I IS %L', name, 'made by feedmill');
            RETURN true;
        EXCEPTION WHEN check_violation THEN
            -- A row came into the default partition since it was looked at.
            taken := true;
        END;
    END IF;
    RAISE NOTICE 'partition % is not made: tweets_default holds rows of that quarter', name;
    RETURN false;
END $$;
