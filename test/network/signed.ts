import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { Auditor, type AuditReport } from '../../src/audit/auditor.ts';
import { fromUtf8 } from '../../src/base/bytes.ts';
import { signatureCheck } from '../../src/subsystems/trustchain/index.ts';

/** Everything that validators and publishers signed and a home has on its disk: certificates, heads, epochs, and the entries of the order. */
function* signedOf(home: string): Iterable<unknown> {
  using database = new DatabaseSync(join(home, 'consensus', 'nkrypt.db'), { readOnly: true });
  for (const [table, column] of [
    ['genesis', 'document'],
    ['epochs', 'document'],
    ['certificates', 'certificate'],
    ['log_certificates', 'document'],
    ['log_entries', 'entry'],
  ]) {
    for (const row of database.prepare(`SELECT ${column} AS text FROM ${table}`).all()) {
      const { text } = row as { text: string | Uint8Array };
      yield JSON.parse(typeof text === 'string' ? text : fromUtf8(text));
    }
  }
}

/** What the auditor says about all of it. */
export function auditHomes(homes: readonly { readonly home: string }[]): AuditReport {
  const auditor = new Auditor(signatureCheck);
  for (const { home } of homes) for (const document of signedOf(home)) auditor.add(document);
  return auditor.report();
}
