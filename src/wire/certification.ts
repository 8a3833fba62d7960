import { z } from 'zod';
import { concat, equal, fromBase64, fromHex, fromUtf8, utf8 } from '../base/bytes.ts';
import { type Digest, digestOf, sha256 } from '../base/digest.ts';
import { HyperMeshError, isCoded } from '../base/errors.ts';
import { canonicalJson, type Json } from '../base/json.ts';
import type { LeafRole } from './certificate.ts';
import { digest, hex32, timeMs } from './fields.ts';
import { decodeGenesis, type Genesis } from './genesis.ts';
import { INVITE_LIMITS } from './invite.ts';
import type { PublicKeys } from './key-id.ts';
import { type WorkProof, workProof } from './proof.ts';
import {
  canonicalBase64,
  certificateChain,
  type Envelope,
  envelope,
  firstIssue,
  openEnvelope,
  SIGNATURE_LIMITS,
  type TrustAnchor,
  trustAnchor,
} from './signature.ts';

/**
 * How a home gets certificates of a network whose keys it does not hold (docs/protocol/certification.md): a request that all three of its keys signed,
 * and the network's answer.
 */

export const CERTIFICATION_TYPE = 'application/vnd.hypermesh.certification.v1+json';

export const CERTIFICATION_LIMITS = {
  /** Canonical JSON of a join request, with its three envelopes. */
  requestBytesMax: 128 * 2 ** 10,
  /** Canonical JSON of an answer: genesis, anchor and chains. */
  answerBytesMax: 8 * 2 ** 20,
  committeeMax: 100,
} as const;

/** In the order of the envelopes. */
export const CERTIFIED_ROLES = ['publisher', 'validator', 'node'] as const satisfies readonly LeafRole[];

/** What a home asks for. Its canonical JSON is signed by each of the three keys: nobody gets a certificate for keys that he does not hold. */
export interface CertificationRequest {
  readonly formatVersion: 1;
  readonly networkId: Digest;
  /** Node id of who is asked: a request is of no use to anybody else. */
  readonly asked: string;
  /** SHA-256 of the secret of an invite, hex; null from a home that is a member already. */
  readonly invite: string | null;
  /** Name in the certificates. */
  readonly subject: string;
  readonly keys: Readonly<
    Record<(typeof CERTIFIED_ROLES)[number], { readonly falcon: string; readonly ed25519: string }>
  >;
  readonly madeAtMs: number;
}

/** The body of `network/join` and `network/renew`. */
export interface JoinRequest {
  /** The secret of the invite, 40 hex digits; null to renew. */
  readonly secret: string | null;
  /** By publisher, validator and node, over the same {@link CertificationRequest}. */
  readonly envelopes: readonly [Envelope, Envelope, Envelope];
  /** Of who joins an open network without an invite (docs/protocol/terms.md). */
  readonly open?: OpenJoin | undefined;
}

/** The price of joining without an invite. */
export interface OpenJoin {
  /** Fresh from who is asked, 64 hex digits. */
  readonly challenge: string;
  /** Over {@link openJoinContext}. */
  readonly work: WorkProof;
}

/** Where a member of the committee is reached. */
export interface CommitteeSeat {
  /** Node id. */
  readonly node: string;
  /** Key id of the validator of the same home. */
  readonly validator: string;
  readonly addresses: readonly string[];
}

/** The network's answer. It needs no signature: everything in it follows from the network id that the invite names. */
export interface Certification {
  readonly formatVersion: 1;
  /** Genesis document. */
  readonly genesis: Json;
  /** Name of the network in certificates. */
  readonly network: string;
  readonly anchor: TrustAnchor;
  /** One for each role, DER in base64. */
  readonly certificates: Readonly<Record<(typeof CERTIFIED_ROLES)[number], string>>;
  /** The authorities between them and the root, DER in base64. */
  readonly authorities: readonly string[];
  readonly committee: readonly CommitteeSeat[];
  readonly atMs: number;
}

const keys = z.strictObject({ falcon: canonicalBase64(1793, 1793), ed25519: canonicalBase64(32, 32) });

export const subjectName = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,31}$/, 'expected 1 to 32 letters, digits, spaces or . _ @ -');

const certificationRequest: z.ZodType<CertificationRequest> = z.strictObject({
  formatVersion: z.literal(1),
  networkId: digest,
  asked: hex32,
  invite: hex32.nullable(),
  subject: subjectName,
  keys: z.strictObject({ publisher: keys, validator: keys, node: keys }),
  madeAtMs: timeMs,
});

const joinRequest: z.ZodType<JoinRequest> = z.strictObject({
  secret: z
    .string()
    .regex(new RegExp(`^[0-9a-f]{${INVITE_LIMITS.secretBytes * 2}}$`), 'expected the secret of an invite')
    .nullable(),
  envelopes: z.tuple([envelope, envelope, envelope]),
  open: z.strictObject({ challenge: hex32, work: workProof }).optional(),
});

const certificate = z
  .string()
  .min(1)
  .max(Math.ceil((SIGNATURE_LIMITS.certificateBytesMax * 4) / 3) + 4);
export const committeeSeat: z.ZodType<CommitteeSeat> = z.strictObject({
  node: hex32,
  validator: hex32,
  addresses: z.array(z.string().max(INVITE_LIMITS.addressLengthMax)).max(INVITE_LIMITS.addressesMax),
});

const certification = z.strictObject({
  formatVersion: z.literal(1),
  genesis: z.custom<Json>((value) => value !== null && typeof value === 'object', 'expected a genesis document'),
  network: subjectName,
  anchor: trustAnchor,
  certificates: z.strictObject({ publisher: certificate, validator: certificate, node: certificate }),
  authorities: certificateChain,
  committee: z.array(committeeSeat).min(1).max(CERTIFICATION_LIMITS.committeeMax),
  atMs: timeMs,
});

/** A request whose form is right, with the exact bytes that were signed. That they hold is the trust subsystem's to check. */
export interface OpenedRequest {
  readonly secret: string | null;
  readonly request: CertificationRequest;
  /** The exact bytes that were signed. */
  readonly payload: Uint8Array;
  /** Null with an invite, and of a member. */
  readonly open: OpenJoin | null;
  /** Decoded, in the order of {@link CERTIFIED_ROLES}. */
  readonly signed: readonly { readonly keys: PublicKeys; readonly envelope: Envelope }[];
}

/** Errors: `certification-invalid`. */
export function decodeJoinRequest(value: unknown): OpenedRequest {
  const parsed = joinRequest.safeParse(value);
  if (!parsed.success) throw invalid(`The request is malformed: ${firstIssue(parsed.error)}.`);
  const { secret, envelopes, open = null } = parsed.data;
  if (open !== null && secret !== null) throw invalid('The request is for an invite and without one.');
  const payloads = envelopes.map((one) => {
    if (one.payloadType !== CERTIFICATION_TYPE) throw invalid('A signature in the request is about something else.');
    return openEnvelope(one).payload;
  });
  if (payloads.some((payload) => !equal(payload, payloads[0]!))) {
    throw invalid('The three keys did not sign the same request.');
  }
  const request = decodeRequest(payloads[0]!);
  const wanted = secret === null ? null : secretHash(secret);
  if (request.invite !== wanted) throw invalid('The request was made for another invite.');
  return {
    secret,
    request,
    payload: payloads[0]!,
    open,
    signed: CERTIFIED_ROLES.map((role, at) => {
      const { falcon, ed25519 } = request.keys[role];
      return { keys: { falcon: fromBase64(falcon), ed25519: fromBase64(ed25519) }, envelope: envelopes[at]! };
    }),
  };
}

function decodeRequest(payload: Uint8Array): CertificationRequest {
  let text: string;
  let value: unknown;
  try {
    text = fromUtf8(payload);
    value = JSON.parse(text);
  } catch {
    throw invalid('The signed request is not JSON.');
  }
  const parsed = certificationRequest.safeParse(value);
  if (!parsed.success) throw invalid(`The signed request is malformed: ${firstIssue(parsed.error)}.`);
  if (canonicalJson(parsed.data) !== text) throw invalid('The signed request is not canonical JSON.');
  return parsed.data;
}

/** The exact bytes that the three keys sign. */
export function certificationPayload(request: CertificationRequest): Uint8Array {
  return utf8(canonicalJson(request));
}

/** What the work of an open join is bound to: who asks, whom, when, and a challenge that nobody knew long before. */
export function openJoinContext(challenge: string, payload: Uint8Array): Digest {
  return digestOf(concat(utf8('hypermesh-open-join-v1\0'), fromHex(challenge), sha256(payload)));
}

/** What the network keeps of a secret. */
export function secretHash(secret: string): string {
  return digestOf(utf8(`hypermesh-invite-secret-v1\0${secret}`)).slice(7);
}

/** Form, and that genesis and root belong together. Whether the certificates hold is the trust subsystem's to say. Errors: `certification-invalid`. */
export function decodeCertification(value: unknown): {
  readonly certification: Certification;
  readonly genesis: Genesis;
  readonly networkId: Digest;
} {
  const parsed = certification.safeParse(value);
  if (!parsed.success) throw invalid(`The answer is malformed: ${firstIssue(parsed.error)}.`);
  try {
    const opened = decodeGenesis(parsed.data.genesis);
    const root = digestOf(fromBase64(parsed.data.anchor.root)).slice(7);
    if (opened.genesis.root !== root)
      throw invalid('The root certificate in the answer is not that of the genesis document.');
    return { certification: parsed.data, ...opened };
  } catch (error) {
    if (isCoded(error, 'certification-invalid')) throw error;
    throw new HyperMeshError('certification-invalid', `The answer is malformed: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

function invalid(message: string): HyperMeshError {
  return new HyperMeshError('certification-invalid', message);
}

/**
 * `HOME/network/move.json`: a home is about to change its network. Once the file is there, the change happens, now or at the next start; its steps can all
 * be done again.
 */
export type NetworkMove =
  | {
      readonly formatVersion: 1;
      readonly kind: 'join';
      readonly certification: Certification;
      readonly forget: boolean;
    }
  | { readonly formatVersion: 1; readonly kind: 'leave'; readonly forget: boolean };

const networkMove = z.discriminatedUnion('kind', [
  z.strictObject({ formatVersion: z.literal(1), kind: z.literal('join'), certification, forget: z.boolean() }),
  z.strictObject({ formatVersion: z.literal(1), kind: z.literal('leave'), forget: z.boolean() }),
]);

export function encodeNetworkMove(move: NetworkMove): string {
  return `${canonicalJson(move)}\n`;
}

/** Errors: `storage-failed`: nobody but this home writes the file. */
export function decodeNetworkMove(text: string): NetworkMove {
  try {
    return networkMove.parse(JSON.parse(text));
  } catch (error) {
    throw new HyperMeshError('storage-failed', 'The file network/move.json of this home is damaged.', {
      hint: 'Restore the home from a backup.',
      cause: error,
    });
  }
}
