-- Which tweet a line of an import became, where its id was not kept: so that a later run, and later files under the same
-- name, mean the same tweet by the same id. Not published.
CREATE TABLE imported_tweets (
    import text NOT NULL REFERENCES imports (name) ON DELETE CASCADE,
    source_id bigint NOT NULL,
    tweet_id bigint NOT NULL,
    PRIMARY KEY (import, source_id)
);
