import { base64 } from '../../base/bytes.ts';
import type { CallOptions } from '../../base/call.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import { canonicalJson } from '../../base/json.ts';
import {
  ACCESS_LIMITS,
  type AccessChallenge,
  accessAsked,
  accessContext,
  accessGranted,
  decodeAccess,
  encodeAccess,
  packageSet,
  type Use,
} from '../../wire/access.ts';
import type { Genesis } from '../../wire/genesis.ts';
import { openingDigest } from './judge.ts';
import type { Prover } from './prover.ts';
import { auditPositions } from './registration.ts';
import type { SpaceCommitment } from './space.ts';
import { LABEL_BYTES } from './space-graph.ts';
import type { OwnStanding } from './standing.ts';

/** Asks the node that gives. */
export type AccessAsk = (
  method: 'access/ask' | 'access/opened' | 'access/prove',
  body: Uint8Array,
  options: { readonly replyBytesMax: number; readonly signal?: AbortSignal | undefined },
) => Promise<Uint8Array>;

interface Wanted {
  readonly identity: string;
  readonly networkId: Digest;
  readonly genesis: Genesis;
  readonly node: string;
  readonly use: Use;
  readonly packages: readonly Digest[];
}

interface Lent {
  readonly prover: Pick<Prover, 'effort'>;
  readonly space: Pick<SpaceCommitment, 'ready' | 'open'>;
  readonly standing: Pick<OwnStanding, 'words'>;
  readonly ask: AccessAsk;
}

/** An audit that came too late on a busy machine, or met a damaged file, is worth another one. */
const ATTEMPTS = 3;

export async function gainAccess(
  lent: Lent,
  wanted: Wanted,
  options: CallOptions = {},
): Promise<{ readonly forMs: number }> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await attemptAccess(lent, wanted, options);
    } catch (error) {
      if (attempt >= ATTEMPTS || !isCoded(error, 'space-unavailable', 'proof-expired')) throw error;
    }
  }
}

/** Two round trips and the time proof: the labels are read, and their digest is on its way, while the squaring goes on. */
async function attemptAccess(
  { prover, space, standing, ask }: Lent,
  wanted: Wanted,
  { signal }: CallOptions,
): Promise<{ readonly forMs: number }> {
  const { use, genesis } = wanted;
  const packages = packageSet(wanted.packages);
  const row = genesis.requirements[use];
  const call = { replyBytesMax: ACCESS_LIMITS.answerBytesMax, signal };
  // Before the clock of the audit runs: making a commitment takes a while.
  const root = row.space === null ? null : await space.ready({ ...(signal === undefined ? {} : { signal }) });
  const words = root === null ? [] : await standing.words(root);
  const { challenge } = decodeAccess(accessAsked, await ask('access/ask', encodeAccess({ use, packages }), call));
  if (challenge === null) return { forMs: row.time?.windowMs ?? 0 };
  checkOwn(challenge, { ...wanted, packages });
  const context = accessContext(challenge);
  const [opened, effort] = await Promise.all([
    row.space === null || root === null ? null : open(challenge, context, root, row.space.openings),
    prover.effort(context, row, signal === undefined ? {} : { signal }),
  ]);
  const proof = { formatVersion: 1, challenge, space: opened, ...effort };
  return decodeAccess(accessGranted, await ask('access/prove', encodeAccess({ proof, standing: words }), call));

  async function open(challenge: AccessChallenge, context: Digest, root: string, openings: number) {
    const n = genesis.space.bytes / LABEL_BYTES;
    const opening = await space.open(auditPositions(challenge.nonce, context, root, n, openings));
    const told = { nonce: challenge.nonce, opening: openingDigest(opening) };
    await ask('access/opened', encodeAccess(told), { ...call, replyBytesMax: 0 });
    return { root, labels: base64(opening.labels), path: base64(opening.path) };
  }
}

/** Nothing is proved for anybody else, nor for more than was wanted. */
function checkOwn(challenge: AccessChallenge, { networkId, node, identity, use, packages }: Wanted): void {
  const { nonce: _nonce, issuedAtMs: _issuedAtMs, ...rest } = challenge;
  if (canonicalJson(rest) === canonicalJson({ formatVersion: 1, networkId, node, identity, use, packages })) return;
  throw new HyperMeshError('peer-lied', 'A node asked for a proof of access to something else than was wanted of it.');
}
