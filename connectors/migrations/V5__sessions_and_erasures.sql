-- Sessions that are renewed, and accounts whose rows are still to go. Neither is published.

-- A refresh token names its session and holds two secrets, of which the hashes are here: one that stays as long as the
-- session, so that it is known whose an old token was, and one that each use replaces. No sessions were kept before.
DELETE FROM sessions;
ALTER TABLE sessions
    ADD COLUMN family_hash bytea NOT NULL,
    ADD COLUMN refresh_hash bytea NOT NULL;
-- What each instance asks for every second.
CREATE INDEX sessions_revoked_at_idx ON sessions (revoked_at) WHERE revoked_at IS NOT NULL;

-- Accounts that were deleted, until nothing of them is left: what one transaction cannot take, others take after it.
CREATE TABLE erasures (
    user_id bigint PRIMARY KEY REFERENCES accounts (user_id) ON DELETE CASCADE,
    deleted_at timestamptz NOT NULL DEFAULT now(),
    -- The account's tweets with this id or a later one are emptied.
    tweets_from bigint NOT NULL DEFAULT 9223372036854775807,
    -- Nothing was left when it was last looked for.
    done boolean NOT NULL DEFAULT false
);
