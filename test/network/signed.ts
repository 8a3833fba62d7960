import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { Auditor, type AuditReport } from '../../src/audit/auditor.ts';
import { base64 } from '../../src/base/bytes.ts';
import { signatureCheck } from '../../src/subsystems/trustchain/index.ts';

/** Everything that validators and publishers signed and a home has on its disk: certificates, heads, epochs, and the entries of the order. */
function* signedOf(home: string): Iterable<unknown> {
  using database = new DatabaseSync(join(home, 'consensus', 'nkrypt.db'), { readOnly: true });
  for (const [table, column] of [
    ['genesis', 'document'],
    ['epochs', 'document'],
    ['certificates', 'certificate'],
  ]) {
    for (const row of database.prepare(`SELECT ${column} AS text FROM ${table}`).all())
      yield JSON.parse((row as { text: string }).text);
  }
  let last = 0;
  for (const row of database.prepare('SELECT position, document FROM log_certificates ORDER BY position').all()) {
    const { position, document } = row as { position: number; document: string };
    const rows = database
      .prepare('SELECT entry FROM log_entries WHERE position > ? AND position <= ? ORDER BY position')
      .all(last, position) as { entry: Uint8Array }[];
    // As validators hand them to each other: the auditor follows the chain.
    yield { certificate: JSON.parse(document), entries: rows.map(({ entry }) => base64(entry)) };
    last = position;
  }
}

/** What the auditor says about all of it. */
export function auditHomes(homes: readonly { readonly home: string }[]): AuditReport {
  const auditor = new Auditor(signatureCheck);
  for (const { home } of homes) for (const document of signedOf(home)) auditor.add(document);
  return auditor.report();
}
