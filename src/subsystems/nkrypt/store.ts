import { join } from 'node:path';
import { type Migration, openSqlite, type SqliteStore } from '../../base/sqlite.ts';
import { MOVES_SCHEMA } from './order/approvals.ts';
import { EMBEDDED_SCHEMA } from './order/embedded.ts';
import { LOG_SCHEMA, RECOVERY_SCHEMA, SNAPSHOT_SCHEMA, VIEWS_SCHEMA } from './order/log-store.ts';

/** Never edited after release: add the next number. */
export const MIGRATIONS: readonly Migration[] = [
  {
    name: '001-init',
    up: `
      CREATE TABLE genesis (id INTEGER PRIMARY KEY CHECK (id = 1), document TEXT NOT NULL) STRICT;
      -- The last sequence number that was given out, whether or not something came of it.
      CREATE TABLE identities (identity TEXT PRIMARY KEY, sequence INTEGER NOT NULL) STRICT;
      -- Every anchor that this committee issued and that may still be answered. Used: something was admitted with it.
      CREATE TABLE challenges (
        nonce TEXT PRIMARY KEY, identity TEXT NOT NULL, sequence INTEGER NOT NULL, operation TEXT NOT NULL, context TEXT NOT NULL,
        issued_at_ms INTEGER NOT NULL, keep_until_ms INTEGER NOT NULL, used INTEGER NOT NULL DEFAULT 0,
        UNIQUE (identity, sequence)
      ) STRICT;
      CREATE INDEX challenges_keep ON challenges (keep_until_ms);
      CREATE INDEX challenges_issued ON challenges (issued_at_ms);
      -- What was admitted. The vote is decided when the row appears; the endorsement (signed votes) follows.
      CREATE TABLE admissions (
        identity TEXT NOT NULL, sequence INTEGER NOT NULL, operation TEXT NOT NULL, proofs TEXT NOT NULL,
        vote TEXT NOT NULL, endorsement TEXT, keep_until_ms INTEGER NOT NULL,
        PRIMARY KEY (identity, sequence)
      ) STRICT;
      CREATE INDEX admissions_keep ON admissions (keep_until_ms);
      -- Digest of the time proof with which the last admitted operation of a kind ended.
      CREATE TABLE tips (identity TEXT NOT NULL, kind TEXT NOT NULL, previous TEXT NOT NULL, PRIMARY KEY (identity, kind)) STRICT;
      CREATE TABLE accounts (
        account TEXT PRIMARY KEY,
        balance INTEGER NOT NULL CHECK (balance >= 0),
        locked INTEGER NOT NULL CHECK (locked >= 0 AND locked <= balance)
      ) STRICT;
      CREATE TABLE commitments (
        identity TEXT PRIMARY KEY, roots TEXT NOT NULL, nonce TEXT NOT NULL, registered INTEGER NOT NULL DEFAULT 0
      ) STRICT;
    `,
  },
  {
    name: '002-network',
    up: `
      -- A row in a home that joined the network of another one: it has no ledger.
      CREATE TABLE joined (id INTEGER PRIMARY KEY CHECK (id = 1)) STRICT;
      -- What who joined was given: once for each invite.
      CREATE TABLE grants (id TEXT PRIMARY KEY, account TEXT NOT NULL, amount INTEGER NOT NULL) STRICT;
      -- Changes that a member asked for, so that asking again after a lost answer changes nothing twice.
      CREATE TABLE asked (
        account TEXT NOT NULL, id TEXT NOT NULL, asked_at_ms INTEGER NOT NULL, PRIMARY KEY (account, id)
      ) STRICT;
      CREATE INDEX asked_at ON asked (asked_at_ms);
    `,
  },
  {
    name: '003-claims',
    up: `
      -- Who published under a name first owns it; what a version stands for never changes, also when it was deleted.
      CREATE TABLE names (name TEXT PRIMARY KEY, identity TEXT NOT NULL) STRICT;
      CREATE TABLE versions (ref TEXT PRIMARY KEY, subject TEXT NOT NULL) STRICT;
    `,
  },
  {
    name: '004-ordered-state',
    up: `
      -- The ordered state (docs/protocol/ordered-state.md), and the sum over all of it.
      CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
      CREATE TABLE fact_sum (id INTEGER PRIMARY KEY CHECK (id = 1), lanes BLOB NOT NULL) STRICT;
      CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, document TEXT NOT NULL) STRICT;
      -- Instructions of this home's account that were signed, and of which it is not known yet what became of them.
      CREATE TABLE instructions (number INTEGER PRIMARY KEY, action TEXT NOT NULL, entry BLOB NOT NULL) STRICT;
      ${LOG_SCHEMA}
      ${EMBEDDED_SCHEMA}
      -- Approvals of what may be the next committee, of this validator and of others.
      CREATE TABLE approvals (
        digest TEXT NOT NULL, proposal TEXT NOT NULL, validator TEXT NOT NULL, attestation TEXT NOT NULL,
        PRIMARY KEY (digest, validator)
      ) STRICT, WITHOUT ROWID;
      -- What follows from the order alone has its place above.
      DROP TABLE accounts;
      DROP TABLE grants;
      DROP TABLE asked;
    `,
  },
  {
    name: '005-votes',
    up: `
      DROP TABLE challenges;
      DROP TABLE admissions;
      DROP TABLE tips;
      DROP TABLE names;
      -- What this home asked the committee for: written before it is signed and sent. Identities: its last sequence number.
      CREATE TABLE orders (sequence INTEGER PRIMARY KEY, operation TEXT NOT NULL, signed TEXT) STRICT;
      -- What this validator votes for under a sequence number; the last proofs that it judged, and when. Signed: the publisher's order.
      CREATE TABLE votes (
        identity TEXT NOT NULL, sequence INTEGER NOT NULL, epoch INTEGER NOT NULL, kind TEXT NOT NULL, operation TEXT NOT NULL,
        proofs TEXT NOT NULL, at_ms INTEGER NOT NULL, signed TEXT, PRIMARY KEY (identity, sequence)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX votes_passing ON votes (at_ms) WHERE signed IS NULL;
      -- No vote for numbers up to here: what was voted for under them is forgotten.
      CREATE TABLE floors (identity TEXT PRIMARY KEY, sequence INTEGER NOT NULL) STRICT;
      -- This validator stopped voting in that epoch, for good.
      CREATE TABLE closed (epoch INTEGER PRIMARY KEY) STRICT;
      -- The committee's certificates that are known here: of publishes all, of other kinds the newest of each identity.
      CREATE TABLE certificates (
        identity TEXT NOT NULL, sequence INTEGER NOT NULL, kind TEXT NOT NULL, operation TEXT NOT NULL, proofs TEXT NOT NULL,
        certificate TEXT NOT NULL, PRIMARY KEY (identity, sequence)
      ) STRICT, WITHOUT ROWID;
      CREATE INDEX certificates_newest ON certificates (identity, kind, sequence);
      -- Two signed orders with one number and different operations.
      CREATE TABLE equivocations (identity TEXT NOT NULL, sequence INTEGER NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL,
        PRIMARY KEY (identity, sequence)) STRICT, WITHOUT ROWID;
    `,
  },
  {
    name: '006-contradictions',
    up: `
      -- Of a publish: its version, without build metadata.
      ALTER TABLE certificates ADD COLUMN ref TEXT;
      UPDATE certificates SET ref = json_extract(certificate, '$.operation.ref') WHERE kind = 'publish';
      UPDATE certificates SET ref = substr(ref, 1, instr(ref, '+') - 1) WHERE ref LIKE '%+%';
      CREATE INDEX certificates_ref ON certificates (ref) WHERE ref IS NOT NULL;
      -- Votes that were seen and are too few for a certificate, the last ones of each identity.
      CREATE TABLE ballots (
        id INTEGER PRIMARY KEY, identity TEXT NOT NULL, sequence INTEGER NOT NULL, operation TEXT NOT NULL, proofs TEXT NOT NULL,
        ref TEXT, ballot TEXT NOT NULL, UNIQUE (identity, sequence, operation, proofs)
      ) STRICT;
      CREATE INDEX ballots_ref ON ballots (ref) WHERE ref IS NOT NULL;
      -- Two signed statements that contradict each other, by what they are about. Answered: the order has it, or refused it.
      CREATE TABLE accusations (about TEXT PRIMARY KEY, conflict TEXT NOT NULL, is_answered INTEGER NOT NULL DEFAULT 0) STRICT;
      CREATE INDEX accusations_open ON accusations (is_answered) WHERE is_answered = 0;
      INSERT INTO accusations (about, conflict) SELECT 'order/' || identity || '/' || sequence, json_object(
        'kind', 'orders', 'keys', json(first -> '$.keys'), 'first', json(first -> '$.envelope'), 'second', json(second -> '$.envelope')
      ) FROM equivocations;
      DROP TABLE equivocations;
    `,
  },
  {
    name: '007-settled',
    up: `
      -- Whether it has yet to be brought into the order, as far as this home knows.
      ALTER TABLE certificates ADD COLUMN is_open INTEGER NOT NULL DEFAULT 0;
      UPDATE certificates SET is_open = 1 WHERE kind IN ('publish', 'default');
      CREATE INDEX certificates_open ON certificates (is_open) WHERE is_open = 1;
    `,
  },
  {
    name: '008-snapshot',
    up: `
      ${SNAPSHOT_SCHEMA}
      -- What the facts of the snapshot were, of those that changed since; null: there was none.
      CREATE TABLE facts_before (key TEXT PRIMARY KEY, value TEXT) STRICT, WITHOUT ROWID;
      -- Those of a snapshot that is on its way in.
      CREATE TABLE facts_coming (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    `,
  },
  { name: '009-recovery', up: RECOVERY_SCHEMA },
  {
    name: '010-whole-rows',
    up: `
      -- As before, but with row ids: without them SQLite puts all but a few hundred bytes of each of these rows on a page of its own, and writes twice as much for a vote.
      CREATE TABLE votes_by_id (
        identity TEXT NOT NULL, sequence INTEGER NOT NULL, epoch INTEGER NOT NULL, kind TEXT NOT NULL, operation TEXT NOT NULL,
        proofs TEXT NOT NULL, at_ms INTEGER NOT NULL, signed TEXT, PRIMARY KEY (identity, sequence)
      ) STRICT;
      INSERT INTO votes_by_id SELECT identity, sequence, epoch, kind, operation, proofs, at_ms, signed FROM votes;
      DROP TABLE votes;
      ALTER TABLE votes_by_id RENAME TO votes;
      CREATE INDEX votes_passing ON votes (at_ms) WHERE signed IS NULL;
      CREATE TABLE certificates_by_id (
        identity TEXT NOT NULL, sequence INTEGER NOT NULL, kind TEXT NOT NULL, operation TEXT NOT NULL, proofs TEXT NOT NULL,
        certificate TEXT NOT NULL, ref TEXT, is_open INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (identity, sequence)
      ) STRICT;
      INSERT INTO certificates_by_id SELECT identity, sequence, kind, operation, proofs, certificate, ref, is_open FROM certificates;
      DROP TABLE certificates;
      ALTER TABLE certificates_by_id RENAME TO certificates;
      CREATE INDEX certificates_newest ON certificates (identity, kind, sequence);
      CREATE INDEX certificates_ref ON certificates (ref) WHERE ref IS NOT NULL;
      CREATE INDEX certificates_open ON certificates (is_open) WHERE is_open = 1;
    `,
  },
  { name: '011-moves', up: MOVES_SCHEMA },
  {
    name: '012-committees',
    up: `
      -- What votes name a committee by.
      DROP TABLE epochs;
      CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, document TEXT NOT NULL) STRICT;
    `,
  },
  { name: '013-views', up: VIEWS_SCHEMA },
];

export type Store = SqliteStore;

export function openStore(directory: string, file = 'nkrypt.db'): Store {
  return openSqlite(join(directory, file), MIGRATIONS);
}
