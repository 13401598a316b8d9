DROP TABLE push_quarantine;
CREATE TABLE push_quarantine (hash TEXT NOT NULL PRIMARY KEY, at BIGINT NOT NULL);
