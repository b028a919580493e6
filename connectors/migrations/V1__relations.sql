-- Everything that Feedmill reads, and what stands beside it.
--
-- The published relations are the columns of `model::Relation`, in any order. Ids of tweets and retweets are
-- time-ordered: milliseconds since 1970, then 16 bits of a sequence. `tweets` is partitioned by quarters of its id.
--
-- Costs that were weighed, per insert of a tweet: two index entries (three for a reply), one foreign-key look-up (two
-- for a reply), and no PL/pgSQL: the guard against the future is the condition of a trigger, evaluated in place, and
-- the function that makes ids is inlined.

-- Ids ---------------------------------------------------------------------------------------------------------------

-- One sequence for tweets and retweets. No cache: a session that kept numbers to itself would use them out of step.
CREATE SEQUENCE feedmill_sequence AS integer MINVALUE 0 MAXVALUE 65535 START 0 CYCLE CACHE 1;

-- A new time-ordered id. Unique while fewer than 65,536 are made in a millisecond.
CREATE FUNCTION feedmill_id() RETURNS bigint LANGUAGE sql VOLATILE PARALLEL UNSAFE
RETURN (floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint << 16)
     | (nextval('feedmill_sequence'::regclass) & 65535);

-- Microseconds since 1970; infinities are the greatest and the least bigint, as in `model::Timestamp`. What lies too far
-- ahead to be counted is as far ahead as can be. Immutable because the zone is named; not STRICT, so that it is inlined.
CREATE FUNCTION feedmill_micros(moment timestamptz) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN moment = timestamptz 'infinity' THEN 9223372036854775807
    WHEN moment = timestamptz '-infinity' THEN (-9223372036854775808)::bigint
    WHEN moment > timestamptz '294247-01-10 04:00:54.775806+00' THEN 9223372036854775806
    ELSE (extract(epoch FROM moment AT TIME ZONE 'UTC') * 1000000)::bigint
END;

-- Accounts ----------------------------------------------------------------------------------------------------------

-- What makes names unique: a table hashed by id cannot. Imported users have neither email nor password.
CREATE TABLE accounts (
    user_id bigint PRIMARY KEY DEFAULT feedmill_id(),
    -- Of ASCII only letters, digits and _. Letters of other scripts are let in, because imported names have them; the API
    -- registers none. Collation "C" folds the case of ASCII letters alone.
    username text COLLATE "C" NOT NULL CHECK (username ~ '^[^\x01-/:-@[-^`{-\x7f]{1,30}$'),
    email text,
    password_hash text,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, username)
);
CREATE UNIQUE INDEX accounts_username_key ON accounts (lower(username));
CREATE UNIQUE INDEX accounts_email_key ON accounts (lower(email));

CREATE TABLE sessions (
    id bigint PRIMARY KEY DEFAULT feedmill_id(),
    user_id bigint NOT NULL REFERENCES accounts (user_id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX sessions_user_id_idx ON sessions (user_id);
CREATE INDEX sessions_expires_at_idx ON sessions (expires_at);

-- The answer to a request that may be sent again.
CREATE TABLE idempotency_keys (
    user_id bigint NOT NULL REFERENCES accounts (user_id) ON DELETE CASCADE,
    key text NOT NULL,
    request_hash bytea NOT NULL,
    status smallint,
    response jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, key)
);
CREATE INDEX idempotency_keys_created_at_idx ON idempotency_keys (created_at);

-- By how much each import was shifted in time, so that running it again shifts it the same.
CREATE TABLE imports (
    name text PRIMARY KEY,
    shift_ms bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Users -------------------------------------------------------------------------------------------------------------

-- Whatever refers to a user refers to the account: each user has one, and PostgreSQL takes four times as long to check a
-- key of a partitioned table (18 µs against 5 µs a row).
CREATE TABLE users (
    id bigint NOT NULL DEFAULT feedmill_id(),
    username text COLLATE "C" NOT NULL,
    display_name text NOT NULL,
    bio text,
    avatar_url text,
    verified boolean NOT NULL DEFAULT false,
    protected boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    PRIMARY KEY (id),
    FOREIGN KEY (id, username) REFERENCES accounts (user_id, username) ON UPDATE CASCADE
) PARTITION BY HASH (id);

DO $$
BEGIN
    FOR part IN 0..7 LOOP
        EXECUTE format('CREATE TABLE users_%s PARTITION OF users FOR VALUES WITH (MODULUS 8, REMAINDER %s)', part, part);
    END LOOP;
END $$;

-- Tweets ------------------------------------------------------------------------------------------------------------

-- A deleted tweet keeps its row, so that its replies keep their place, and loses what it said.
CREATE TABLE tweets (
    id bigint NOT NULL DEFAULT feedmill_id(),
    user_id bigint NOT NULL REFERENCES accounts (user_id),
    content text NOT NULL,
    reply_to_id bigint REFERENCES tweets (id),
    conversation_id bigint NOT NULL,
    media jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    PRIMARY KEY (id),
    CONSTRAINT tweets_content_length CHECK (char_length(content) <= 280),
    CONSTRAINT tweets_reply_is_later CHECK (reply_to_id < id),
    CONSTRAINT tweets_conversation_is_a_thread CHECK (
        CASE WHEN reply_to_id IS NULL THEN conversation_id = id ELSE conversation_id <= reply_to_id END),
    CONSTRAINT tweets_deleted_is_empty CHECK (deleted_at IS NULL OR (content = '' AND media IS NULL))
) PARTITION BY RANGE (id);
CREATE INDEX tweets_user_id_idx ON tweets (user_id, id);
CREATE INDEX tweets_reply_to_id_idx ON tweets (reply_to_id) WHERE reply_to_id IS NOT NULL;
CREATE TABLE tweets_default PARTITION OF tweets DEFAULT;

-- The other relations -----------------------------------------------------------------------------------------------

CREATE TABLE follows (
    follower_id bigint NOT NULL REFERENCES accounts (user_id),
    following_id bigint NOT NULL REFERENCES accounts (user_id),
    accepted boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (follower_id, following_id),
    CONSTRAINT follows_not_oneself CHECK (follower_id <> following_id)
);
CREATE INDEX follows_following_id_idx ON follows (following_id);

CREATE TABLE likes (
    user_id bigint NOT NULL REFERENCES accounts (user_id),
    tweet_id bigint NOT NULL REFERENCES tweets (id),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, tweet_id)
);
CREATE INDEX likes_tweet_id_idx ON likes (tweet_id);

CREATE TABLE retweets (
    id bigint PRIMARY KEY DEFAULT feedmill_id(),
    user_id bigint NOT NULL REFERENCES accounts (user_id),
    tweet_id bigint NOT NULL REFERENCES tweets (id),
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, tweet_id)
);
CREATE INDEX retweets_tweet_id_idx ON retweets (tweet_id);
CREATE INDEX retweets_user_id_idx ON retweets (user_id, id);

CREATE TABLE blocks (
    blocker_id bigint NOT NULL REFERENCES accounts (user_id),
    blocked_id bigint NOT NULL REFERENCES accounts (user_id),
    PRIMARY KEY (blocker_id, blocked_id),
    CONSTRAINT blocks_not_oneself CHECK (blocker_id <> blocked_id)
);
CREATE INDEX blocks_blocked_id_idx ON blocks (blocked_id);

CREATE TABLE mutes (
    muter_id bigint NOT NULL REFERENCES accounts (user_id),
    muted_id bigint NOT NULL REFERENCES accounts (user_id),
    PRIMARY KEY (muter_id, muted_id),
    CONSTRAINT mutes_not_oneself CHECK (muter_id <> muted_id)
);

CREATE TABLE activity (
    user_id bigint NOT NULL REFERENCES accounts (user_id),
    day date NOT NULL,
    PRIMARY KEY (user_id, day)
);

CREATE TABLE popular (user_id bigint PRIMARY KEY REFERENCES accounts (user_id));

CREATE TABLE read_marks (
    user_id bigint PRIMARY KEY REFERENCES accounts (user_id),
    notifications_id bigint NOT NULL
);

-- Guards ------------------------------------------------------------------------------------------------------------

-- An entry that claims to come from the future would stand above all others, and outlive them. The condition stands at
-- the trigger, so that the function is called for the row that is refused and for no other.
CREATE FUNCTION feedmill_refuse_future() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a row of % with id % and created_at % lies more than an hour ahead of now',
        TG_ARGV[0], NEW.id, NEW.created_at
        USING ERRCODE = 'check_violation',
              HINT = 'Let the id default to feedmill_id(), and set the clock of the machine that made created_at.';
END $$;

CREATE TRIGGER feedmill_refuse_future BEFORE INSERT OR UPDATE OF id, created_at ON tweets FOR EACH ROW
WHEN (NEW.created_at > now() + interval '1 hour'
   OR (NEW.id >> 16) > (extract(epoch FROM now()) * 1000)::bigint + 3600000)
EXECUTE FUNCTION feedmill_refuse_future('tweets');

CREATE TRIGGER feedmill_refuse_future BEFORE INSERT OR UPDATE OF id, created_at ON retweets FOR EACH ROW
WHEN (NEW.created_at > now() + interval '1 hour'
   OR (NEW.id >> 16) > (extract(epoch FROM now()) * 1000)::bigint + 3600000)
EXECUTE FUNCTION feedmill_refuse_future('retweets');

-- Waits until no other transaction decides about follows and blocks between these two users, and keeps others waiting
-- until this one ends. Pairs share 1,024 locks, so that a transaction with a million blocks does not need a million.
CREATE FUNCTION feedmill_lock_pair(one bigint, other bigint) RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(
        hashtext('feedmill_lock_pair'), (hashint8extended(least(one, other), greatest(one, other)) & 1023)::integer)
$$;

-- A block ends follows both ways, in its own transaction. A follow that is being made at the same time holds the lock
-- and is then seen here, or waits for it and then sees the block: whoever makes follows must take it in a statement of
-- its own before the one that looks for blocks.
CREATE FUNCTION feedmill_block_unfollows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM feedmill_lock_pair(NEW.blocker_id, NEW.blocked_id);
    DELETE FROM follows WHERE follower_id = NEW.blocker_id AND following_id = NEW.blocked_id;
    DELETE FROM follows WHERE follower_id = NEW.blocked_id AND following_id = NEW.blocker_id;
    RETURN NULL;
END $$;

CREATE TRIGGER feedmill_block_unfollows AFTER INSERT OR UPDATE ON blocks FOR EACH ROW
EXECUTE FUNCTION feedmill_block_unfollows();
