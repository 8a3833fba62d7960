import { z } from 'zod';
import type { Progress } from '../base/call.ts';
import type { Digest } from '../base/digest.ts';
import type { ErrorCode, ProblemDocument } from '../base/errors.ts';
import type { Json } from '../base/json.ts';
import { sequencerInEtcd } from './entry.ts';
import { digest, hex32 } from './fields.ts';
import { grant } from './grants.ts';
import { packageName } from './names.ts';
import { PROOF_LIMITS } from './proof-limits.ts';

/** Requests of the HTTP API (docs/protocol/http.md). Each is checked here, once, before anything acts on it. */

export const HTTP_LIMITS = {
  /** Bytes of a JSON body: the largest lock file, and what is around it. */
  jsonBytesMax: 17 * 2 ** 20,
  /** Nesting of JSON that is passed on to a program. */
  jsonDepthMax: 64,
  /** Packages in one request. */
  refsMax: 1_000,
  /** Bytes of one line of an NDJSON answer. */
  lineBytesMax: 64 * 2 ** 20,
} as const;

export const NDJSON = 'application/x-ndjson';
export const PROBLEM = 'application/problem+json';
export const TREE = 'application/x-tar';
export const STATE_EXPORT = 'application/vnd.hypermesh.state';

/** JSON of bounded depth; its numbers are finite, which those that JavaScript parses need not be (`1e999`). */
export const json = z
  .custom<Json>((value) => value !== undefined)
  .refine(
    (value) => isBounded(value, HTTP_LIMITS.jsonDepthMax),
    `expected at most ${HTTP_LIMITS.jsonDepthMax} levels, and no number past the range of a double`,
  );

function isBounded(value: unknown, levels: number): boolean {
  if (typeof value === 'number') return Number.isFinite(value);
  if (value === null || typeof value !== 'object') return true;
  return levels > 0 && Object.values(value).every((member) => isBounded(member, levels - 1));
}

const ref = z.string().max(400);
const names = z.array(packageName).max(HTTP_LIMITS.refsMax);
/** Absolute path of an installation; absent: the node's own. */
const root = z
  .string()
  .min(1)
  .max(4_096)
  .refine((path) => !path.includes('\0'), 'expected a path')
  .optional();
const reason = z.string().min(1).max(1_000).nullable();

export const publishRequest = z.strictObject({
  /** The text of `catalog.yaml`. */
  manifestYaml: z.string().max(256 * 1024),
  /** Digest of a layer that was sent before. */
  layer: digest,
});
export const searchRequest = z.strictObject({
  text: z.string().max(500).optional(),
  type: z.string().max(64).optional(),
  language: z.string().max(64).optional(),
  keyword: z.string().max(64).optional(),
  owner: z.string().max(128).optional(),
  license: z.string().max(100).optional(),
  includeYanked: z.stringbool().optional(),
  limit: z.coerce.number().int().min(1).max(100).optional(),
  cursor: z.string().max(1_000).optional(),
});
export const packagePath = z.strictObject({ scope: z.string().max(64), name: z.string().max(64) });
export const rangeQuery = z.strictObject({ range: z.string().max(256).optional() });
export const stateRequest = z.strictObject({
  range: z.string().max(256).optional(),
  state: z.enum(['published', 'deprecated', 'yanked']),
  reason: reason.default(null),
});
export const installRequest = z.strictObject({
  root,
  refs: z.array(ref).max(HTTP_LIMITS.refsMax),
  /** Exactly what the lock file of the installation says. */
  locked: z.boolean().optional(),
  /** The content of a lock file to start from, or with `locked` to follow. */
  lock: json.optional(),
});
export const namesRequest = z.strictObject({ root, names });
export const rootRequest = z.strictObject({ root });
export const runRequest = z.strictObject({
  ref,
  input: json.default(null),
  args: z.array(z.string().max(4_096)).max(256).optional(),
  environment: z.record(z.string().max(128), z.string().max(32_768)).optional(),
  limits: z
    .strictObject({
      memoryBytes: z.int().positive().optional(),
      wallMs: z.int().positive().optional(),
      cpuCores: z.number().positive().optional(),
      tmpBytes: z.int().nonnegative().optional(),
      outputBytes: z.int().nonnegative().optional(),
      /** Instructions of WebAssembly. */
      fuel: z.int().positive().optional(),
    })
    .optional(),
});
export const verifyRequest = z.union([
  z.strictObject({ ref, offline: z.boolean().optional() }),
  z.strictObject({ bundle: json, offline: z.boolean().optional() }),
  /** A bundle in the content store of the node. */
  z.strictObject({ digest, offline: z.boolean().optional() }),
]);
export const renewRequest = z.strictObject({ role: z.enum(['publisher', 'validator', 'node']) });
export const revokeRequest = z.strictObject({
  fingerprint: hex32,
  reason: z.enum(['key-compromise', 'superseded', 'cessation-of-operation']),
});
export const proofRequest = z.strictObject({
  kind: z.enum(['publish', 'install', 'execute', 'default']),
  subject: digest,
  ref: z.string().max(400).default(''),
});
/** `atMs`: when the proofs arrived, for what was admitted before; now when absent. */
export const proofVerifyRequest = z.strictObject({ proofs: json, atMs: z.int().nonnegative().optional() });
const amount = z.int().positive();
export const stakeRequest = z.discriminatedUnion('action', [
  z.strictObject({ action: z.literal('lock'), amount }),
  z.strictObject({ action: z.literal('unlock'), amount }),
  z.strictObject({ action: z.literal('transfer'), amount, to: z.string().min(1).max(128) }),
]);
/** `HOST:PORT`. */
const address = z.string().min(3).max(255);
export const createNetworkRequest = z.strictObject({
  listen: address.optional(),
  /** Also to those without an invite, within these bounds. */
  open: z
    .strictObject({
      membersMax: z.int().optional(),
      joinsPerHour: z.int().positive().optional(),
      joinsPerAddressPerHour: z.int().positive().optional(),
      workHexDigits: z.int().positive().optional(),
    })
    .optional(),
});
export const inviteRequest = z.strictObject({
  expiresInMs: z.int().positive().optional(),
  addresses: z.array(address).min(1).max(8).optional(),
  tokens: z.int().nonnegative().optional(),
});
export const joinRequest = z.strictObject({
  invite: z.string().max(8_192),
  listen: address.optional(),
  /** Drop the packages of the network that the home was in. */
  forget: z.boolean().optional(),
});
export const leaveRequest = z.strictObject({ forget: z.boolean().optional() });
/** Although the engine before is lost. */
const recover = z.boolean().optional();
export const moveSequencerRequest = z.discriminatedUnion('kind', [
  z.strictObject({
    kind: z.literal('embedded'),
    validator: hex32.optional(),
    recover,
  }),
  sequencerInEtcd.extend({ recover }),
]);
const instead = z.boolean().optional();
/** Seats in the committee for members, or none any more; or the approval of what was proposed. */
export const changeValidatorsRequest = z.discriminatedUnion('action', [
  z.strictObject({
    action: z.enum(['add', 'remove']),
    nodes: z.array(hex32).min(1).max(PROOF_LIMITS.committeeMax),
    instead,
  }),
  z.strictObject({ action: z.literal('approve'), proposal: digest.optional(), instead }),
]);
export const removeMemberRequest = z.strictObject({
  node: hex32,
  compromised: z.boolean().optional(),
});
/** A body without members: the operation needs no more. */
export const syncRequest = z.strictObject({});
/** With `code`, any k of k + m fragments are to restore the content, in the place of copies. */
export const distributeRequest = rangeQuery.extend({
  code: z.strictObject({ k: z.int().positive(), m: z.int().positive() }).optional(),
});
export const forgiveRequest = z.strictObject({
  node: hex32,
});
export const banPath = z.strictObject({ node: hex32 });
export const runtimePath = z.strictObject({ kind: z.enum(['wasm', 'julia', 'python', 'container', 'vm']) });
/** Where the image of a language comes from: a package of the catalog, or a layer that was sent; packages of the distribution when absent. */
export const runtimeRequest = z.union([z.strictObject({}), z.strictObject({ ref }), z.strictObject({ layer: digest })]);
/** What a package is granted: as `grant-needed` names it, with the paths of its folders. */
export const grantRequest = grant.omit({ grantedAtMs: true });
export const grantPath = z.strictObject({ package: digest });
export const grantQuery = z.strictObject({ what: z.string().min(1).max(300).optional() });
export const metricsRequest = z.strictObject({ pattern: z.string().min(1).max(200).default('*') });
export const eventsRequest = z.strictObject({
  after: z.coerce.number().int().min(0).optional(),
  /** Instead of `after`: begin with this many of the newest. */
  last: z.coerce.number().int().min(0).max(1_000).optional(),
  pattern: z.string().min(1).max(200).optional(),
  /** `false`: what is kept, then the end. */
  follow: z.stringbool().optional(),
});
export const collectRequest = z.strictObject({ scrub: z.boolean().default(false) });

export type InstallRequest = z.input<typeof installRequest>;
export type RunRequest = z.input<typeof runRequest>;
export type VerifyRequest = z.input<typeof verifyRequest>;
export type GrantRequest = z.input<typeof grantRequest>;
export type RuntimeRequest = z.input<typeof runtimeRequest>;
export type StakeRequest = z.input<typeof stakeRequest>;
export type SearchRequest = z.infer<typeof searchRequest>;
export type ProofRequest = z.input<typeof proofRequest>;
export type CreateNetworkRequest = z.input<typeof createNetworkRequest>;
export type InviteRequest = z.input<typeof inviteRequest>;
export type JoinRequest = z.input<typeof joinRequest>;
export type LeaveRequest = z.input<typeof leaveRequest>;
export type ForgiveRequest = z.input<typeof forgiveRequest>;
export type ChangeValidatorsRequest = z.input<typeof changeValidatorsRequest>;
export type MoveSequencerRequest = z.input<typeof moveSequencerRequest>;
export type RemoveMemberRequest = z.input<typeof removeMemberRequest>;

/** The answer of `GET /v1/status`. */
export interface NodeStatus {
  readonly version: string;
  /** Version of Node. */
  readonly runtime: string;
  readonly pid: number;
  readonly home: string;
  readonly startedAtMs: number;
  readonly uptimeMs: number;
  readonly networkId: Digest;
  readonly publisher: { readonly subject: string; readonly keyId: string; readonly notAfterMs: number };
  readonly space: {
    readonly state: 'absent' | 'building' | 'ready' | 'damaged';
    readonly bytes: number;
    /** 0 to 1. */
    readonly fraction: number;
    readonly auditedAtMs: number | null;
  };
  readonly totals: {
    readonly packages: number;
    readonly versions: number;
    readonly blobs: number;
    readonly bytes: number;
  };
  readonly resources: {
    readonly capacity: { readonly cpuCores: number; readonly memoryBytes: number; readonly storageBytes: number };
    readonly leased: { readonly cpuCores: number; readonly memoryBytes: number; readonly storageBytes: number };
    readonly leases: number;
    readonly waiting: number;
  };
  /** The other nodes of the network, and what moves between them now. */
  readonly transport: {
    readonly state: 'alone' | 'offline' | 'online';
    readonly node: string;
    readonly addresses: readonly string[];
    readonly problem: string | null;
    readonly peers: { readonly known: number; readonly alive: number };
    readonly transfers: readonly {
      readonly direction: 'in' | 'out';
      readonly blob: Digest;
      readonly resources: readonly Digest[];
      /** `scope/name@version` of the resources that this node has a record of. */
      readonly packages: readonly string[];
      readonly done: number;
      readonly total: number;
      readonly bytesPerSecond: number;
      readonly peers: readonly { readonly node: string; readonly bytes: number; readonly bytesPerSecond: number }[];
    }[];
    readonly resources: { readonly known: number; readonly held: number; readonly underReplicated: number };
    readonly coded: { readonly packages: number; readonly fragments: number; readonly missing: number };
    readonly arrivals: number;
  };
  readonly memory: { readonly residentBytes: number; readonly heapBytes: number };
  readonly extensions: readonly { readonly id: string; readonly version: string; readonly state: string }[];
}

/** The answer of `GET /v1/peers/bans/NODE`. */
export interface BanWithEvidence {
  readonly node: string;
  readonly reason: string;
  readonly bannedAtMs: number;
  readonly evidenceBytes: number;
  /** Base64. */
  readonly evidence: string;
}

/** A problem document (RFC 9457) as the API sends it: our members, and the standard ones. */
export interface HttpProblem extends ProblemDocument {
  readonly type: `urn:hypermesh:error:${ErrorCode}`;
  readonly title: string;
  readonly status: number;
  /** Same text as `message`. */
  readonly detail: string;
}

/** One line of an answer to a long operation. An empty line only shows that the node is alive. */
export type Line = { readonly progress: Progress } | { readonly result: unknown } | { readonly error: HttpProblem };
