import { HyperMeshError } from '../../base/errors.ts';
import type { CertificateInfo } from '../../client/index.ts';
import type { Context, Outcome } from '../command.ts';
import { date, fields } from '../terminal.ts';

export async function keys(context: Context): Promise<Outcome> {
  const known = await context.withNode((client) => client.keys(context));
  const show = (role: string, { subject, keyId, fingerprint, notAfterMs }: CertificateInfo) =>
    fields({ [role]: subject, 'Key id': keyId, Certificate: fingerprint, Until: date(notAfterMs) });
  const { publisher, validator, node } = known;
  const text = [show('Publisher', publisher), show('Validator', validator), show('Node', node)].join('\n\n');
  return { data: known, text };
}

export async function certificates(context: Context): Promise<Outcome> {
  const list = await context.withNode((client) => client.certificates(context));
  const shown = list.map(({ role, status, notAfterMs, subject, fingerprint }) =>
    fields({ Role: `${role}, ${lifeOf(status, notAfterMs)}`, Subject: subject, Fingerprint: fingerprint }),
  );
  return { data: { certificates: list }, text: shown.join('\n\n') };
}

function lifeOf(status: CertificateInfo['status'], notAfterMs: number): string {
  if (status === 'revoked') return 'revoked';
  return status === 'expired' ? `expired ${date(notAfterMs)}` : `${status} until ${date(notAfterMs)}`;
}

export async function renew(context: Context, role: string): Promise<Outcome> {
  const wanted = oneOf(['publisher', 'validator', 'node'], role, 'a role');
  const issued = await context.withNode((client) => client.renewCertificate(wanted, context));
  return { data: issued, text: `New certificate ${issued.fingerprint}, valid until ${date(issued.notAfterMs)}.` };
}

export async function revoke(
  context: Context,
  fingerprint: string,
  options: { readonly reason?: string },
): Promise<Outcome> {
  const reasons = ['key-compromise', 'superseded', 'cessation-of-operation'] as const;
  const reason = oneOf(reasons, options.reason ?? 'superseded', 'a reason');
  hexId(fingerprint, 'a fingerprint', '`hypermesh cert` lists the certificates.');
  const revoked = await context.withNode((client) => client.revokeCertificate(fingerprint, reason, context));
  return { data: revoked, text: `Revoked ${revoked.revoked} (${revoked.reason}).` };
}

export function oneOf<const T extends string>(choices: readonly T[], given: string, what: string): T {
  const found = choices.find((choice) => choice === given);
  if (found !== undefined) return found;
  throw new HyperMeshError('usage', `Expected ${what} of ${choices.join(', ')}, but got "${given.slice(0, 100)}".`);
}

/** A key id or a fingerprint. Errors: `usage`. */
export function hexId(given: string, what: string, hint: string): string {
  if (/^[0-9a-f]{64}$/.test(given)) return given;
  throw new HyperMeshError('usage', `Expected ${what} of 64 hex digits, but got "${given.slice(0, 100)}".`, { hint });
}
