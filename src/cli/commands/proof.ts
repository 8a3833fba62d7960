import { utf8 } from '../../base/bytes.ts';
import { isDigest } from '../../base/digest.ts';
import { HyperMeshError } from '../../base/errors.ts';
import { canonicalJson, type Json } from '../../base/json.ts';
import type { StakeAccount } from '../../client/index.ts';
import { decodeBundle } from '../../wire/bundle.ts';
import { admittedAtMs, proofSetShell, type Requirements } from '../../wire/proof.ts';
import { firstIssue } from '../../wire/signature.ts';
import type { Context, Outcome } from '../command.ts';
import { parseJson, readTextFile, writeWhole } from '../files.ts';
import { bytes, duration, fields, oneLine, table } from '../terminal.ts';
import { wholeNumber } from './search.ts';
import { spaceLine } from './status.ts';
import { oneOf } from './trust.ts';

const PROOFS_BYTES_MAX = 8 * 2 ** 20;

export async function proofInit(context: Context): Promise<Outcome> {
  const space = await context.withNode((client) => client.commitSpace(context));
  return { data: space, text: `The space commitment is ready: ${bytes(space.bytes)}.` };
}

export async function proofStatus(context: Context): Promise<Outcome> {
  const [space, network] = await context.withNode((client) =>
    Promise.all([client.space(context), client.network(context)]),
  );
  const { networkId, requirements } = network;
  const rows = [['', 'space', 'stake', 'work', 'time'], ...requirements.map(row)];
  const head = fields({ Network: networkId, Space: spaceLine(space) });
  return { data: { networkId, space, requirements }, text: `${head}\n\n${table(rows)}` };
}

function row({ kind, space, stake, work, time }: Requirements): string[] {
  return [
    kind,
    space === null ? '-' : bytes(space.bytesMin),
    stake === null ? '-' : `${stake.amountMin} tokens`,
    work === null ? '-' : `${work.hexDigits} hex digits`,
    time === null ? '-' : `${time.squarings} squarings, ${duration(time.windowMs)}`,
  ];
}

export async function proofMake(
  context: Context,
  kind: string,
  subject: string,
  file: string | undefined,
  options: { readonly ref?: string },
): Promise<Outcome> {
  const wanted = oneOf(['publish', 'install', 'execute', 'default'], kind, 'an operation');
  if (!isDigest(subject))
    throw new HyperMeshError(
      'usage',
      `Expected "sha256:" and 64 hexadecimal digits, but got "${subject.slice(0, 100)}".`,
    );
  const request = { kind: wanted, subject, ...(options.ref === undefined ? {} : { ref: options.ref }) };
  const proofs = await context.withNode((client) => client.makeProofs(request, context));
  if (file === undefined) return { data: proofs, text: canonicalJson(proofs) };
  await writeWhole(file, `${canonicalJson(proofs)}\n`);
  return { data: { file, proofs }, text: `Wrote the proofs to ${file}.` };
}

/** A file of proofs, or a bundle, which holds one. */
export async function proofVerify(context: Context, file: string): Promise<Outcome> {
  const text = await readTextFile(file, PROOFS_BYTES_MAX);
  const content = parseJson(text, `in ${file}`);
  const isBundle = content !== null && typeof content === 'object' && 'proofs' in content;
  const { proofs, endorsement } = isBundle ? decodeBundle(utf8(text)) : { proofs: content, endorsement: undefined };
  const shell = proofSetShell.safeParse(proofs);
  if (!shell.success)
    throw new HyperMeshError('proof-invalid', `Expected a proof set, but ${firstIssue(shell.error)}.`);
  const atMs = endorsement === undefined ? undefined : admittedAtMs(endorsement);
  // What was admitted long ago is judged as of then: a proof of time is fresh for minutes.
  const verdicts = await context.withNode((client) => client.verifyProofs(proofs as unknown as Json, atMs, context));
  const bad = verdicts.filter(({ verdict }) => verdict === 'invalid');
  const lines = table(verdicts.map(({ kind, verdict, says, verifyMs }) => [kind, verdict, says, duration(verifyMs)]));
  if (bad.length === 0) return { data: { valid: true, verdicts }, text: lines };
  // What is wrong with all of them, such as their anchor, is said once.
  const reasons = [...Map.groupBy(bad, ({ says }) => says)].map(
    ([says, about]) => `${about.map(({ kind }) => kind).join(', ')}: ${oneLine(says)}`,
  );
  throw new HyperMeshError('proof-rejected', reasons.join('; '), { details: { verdicts } });
}

export async function stakeShow(context: Context): Promise<Outcome> {
  return account(await context.withNode((client) => client.stake(context)));
}

export async function stakeChange(
  context: Context,
  action: 'lock' | 'unlock' | 'transfer',
  amountText: string,
  to?: string,
): Promise<Outcome> {
  const amount = wholeNumber(amountText, 'the amount', 1);
  const request = action === 'transfer' ? { action, amount, to: to! } : { action, amount };
  return account(await context.withNode((client) => client.changeStake(request, context)));
}

function account(stake: StakeAccount): Outcome {
  const { account: id, balance, locked, unbonding, isSuspended } = stake;
  const open = unbonding.reduce((sum, { amount }) => sum + amount, 0);
  const text = fields({
    ...{
      Account: id,
      Balance: `${balance} tokens`,
      Free: `${balance - locked - open} tokens`,
      Locked: `${locked} tokens`,
    },
    ...(open === 0 ? {} : { Unbonding: unbonding.map(whenFree).join('; ') }),
    ...(isSuspended
      ? { Suspended: 'two of its statements contradict each other; it can publish in the next epoch' }
      : {}),
  });
  return { data: stake, text };
}

function whenFree({ amount, endsAtMs }: StakeAccount['unbonding'][number]): string {
  const when =
    endsAtMs === null ? 'seven days after the committee has told the time' : new Date(endsAtMs).toISOString();
  return `${amount} tokens, free ${when}`;
}
