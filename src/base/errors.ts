/**
 * Every refusal and every failure of the outside world is a {@link HyperMeshError} with a code from {@link ERRORS}.
 * A bug is not: it is an `assert` that stops the process. Nobody branches on message text.
 *
 * The table is the single source of the HTTP status, the CLI exit status and the documentation page `docs/errors.md`.
 */

/** CLI exit statuses, one per class of failure. Documented in `docs/errors.md`. */
export const EXIT = {
  ok: 0,
  internal: 1,
  usage: 2,
  invalid: 3,
  refused: 4,
  notFound: 5,
  conflict: 6,
  integrity: 7,
  unavailable: 8,
  program: 9,
  storage: 10,
  interrupted: 130,
} as const;

interface ErrorRow {
  /** HTTP status of the problem document. */
  readonly status: number;
  /** CLI exit status. */
  readonly exit: (typeof EXIT)[keyof typeof EXIT];
  /** Whether the same call may succeed later without any change. */
  readonly retry: boolean;
  /** One sentence for the documentation: when it is thrown. */
  readonly when: string;
}

/** code -> HTTP status, exit status, retry, meaning. Sorted by area; `test/tidy.test.ts` checks that each row is documented and used. */
export const ERRORS = {
  // any area
  usage: {
    status: 400,
    exit: EXIT.usage,
    retry: false,
    when: 'A command or request has a missing, unknown or contradictory argument.',
  },
  'config-invalid': {
    status: 400,
    exit: EXIT.usage,
    retry: false,
    when: 'A configuration key, environment variable or flag is unknown or has a wrong value.',
  },
  internal: {
    status: 500,
    exit: EXIT.internal,
    retry: false,
    when: 'A defect in HyperMesh itself; the log has the details.',
  },
  cancelled: {
    status: 499,
    exit: EXIT.interrupted,
    retry: true,
    when: 'The caller gave up before the operation finished.',
  },
  'limit-exceeded': {
    status: 413,
    exit: EXIT.invalid,
    retry: false,
    when: 'An input is larger, deeper or more numerous than the documented limit.',
  },
  'not-permitted': {
    status: 403,
    exit: EXIT.refused,
    retry: false,
    when: 'The request carries no valid token for an operation that needs one.',
  },
  'storage-full': { status: 507, exit: EXIT.storage, retry: true, when: 'The disk or the quota of the home is full.' },
  'storage-read-only': {
    status: 507,
    exit: EXIT.storage,
    retry: false,
    when: 'The home or the target folder cannot be written.',
  },
  'storage-failed': {
    status: 500,
    exit: EXIT.storage,
    retry: true,
    when: 'The operating system refused a read or a write for another reason.',
  },
  // node
  'node-not-running': { status: 503, exit: EXIT.unavailable, retry: true, when: 'No node answers for this home.' },
  'home-in-use': { status: 409, exit: EXIT.conflict, retry: true, when: 'Another node already has this home open.' },
  'home-too-new': {
    status: 409,
    exit: EXIT.conflict,
    retry: false,
    when: 'The home was written by a newer version of HyperMesh.',
  },
  'home-too-old': {
    status: 409,
    exit: EXIT.conflict,
    retry: false,
    when: 'The home was made before the formats of its packages became what they are.',
  },
  // packages
  'manifest-invalid': {
    status: 422,
    exit: EXIT.invalid,
    retry: false,
    when: '`catalog.yaml` has an unknown key, a wrong type, a bad version or range, or is not YAML; the message names the line.',
  },
  'manifest-missing': { status: 422, exit: EXIT.invalid, retry: false, when: 'The folder has no `catalog.yaml`.' },
  'entry-missing': {
    status: 422,
    exit: EXIT.invalid,
    retry: false,
    when: 'The manifest names an entry or a readme that the package does not contain.',
  },
  'tree-invalid': {
    status: 422,
    exit: EXIT.invalid,
    retry: false,
    when: 'A package tree has an unsafe path, a link out of the folder, a device, a duplicate or clashing name, or is not in canonical form.',
  },
  'package-file-invalid': {
    status: 422,
    exit: EXIT.invalid,
    retry: false,
    when: 'A package file is truncated, altered or not a package.',
  },
  'package-not-found': {
    status: 404,
    exit: EXIT.notFound,
    retry: false,
    when: 'No package of that name is known here.',
  },
  'version-not-found': {
    status: 404,
    exit: EXIT.notFound,
    retry: false,
    when: 'The package exists but no version satisfies the range.',
  },
  'asset-not-found': { status: 404, exit: EXIT.notFound, retry: false, when: 'No asset has that id.' },
  'blob-not-found': {
    status: 404,
    exit: EXIT.notFound,
    retry: false,
    when: 'The content store has no blob with that digest.',
  },
  'file-not-found': {
    status: 404,
    exit: EXIT.notFound,
    retry: false,
    when: 'A package tree or a folder has no file of that path.',
  },
  'blob-mismatch': {
    status: 422,
    exit: EXIT.integrity,
    retry: false,
    when: 'Bytes do not hash to the digest that was announced.',
  },
  'shard-mismatch': {
    status: 502,
    exit: EXIT.integrity,
    retry: true,
    when: 'A node sent bytes that are not the shard that was asked for; another node is asked.',
  },
  'stream-invalid': {
    status: 422,
    exit: EXIT.integrity,
    retry: false,
    when: 'A sealed stream is cut off, altered, or was sealed with another secret.',
  },
  'content-unavailable': {
    status: 503,
    exit: EXIT.unavailable,
    retry: true,
    when: 'No node that can be reached gives content that is needed.',
  },
  'content-invalid': {
    status: 422,
    exit: EXIT.invalid,
    retry: false,
    when: 'A message between nodes about content is malformed.',
  },
  'blob-damaged': {
    status: 500,
    exit: EXIT.integrity,
    retry: false,
    when: 'A stored blob no longer has its digest; it was set aside.',
  },
  'version-exists': {
    status: 409,
    exit: EXIT.conflict,
    retry: false,
    when: 'This name and version was published before with other content.',
  },
  'has-dependents': {
    status: 409,
    exit: EXIT.conflict,
    retry: false,
    when: 'Something published or installed still depends on this version.',
  },
  'dependency-conflict': {
    status: 409,
    exit: EXIT.conflict,
    retry: false,
    when: 'No choice of versions satisfies all ranges; the message explains the chain of demands.',
  },
  'dependency-cycle': {
    status: 422,
    exit: EXIT.invalid,
    retry: false,
    when: 'A package would depend on itself, directly or through others.',
  },
  'lock-invalid': {
    status: 422,
    exit: EXIT.invalid,
    retry: false,
    when: '`hypermesh.lock` is not a lock file of a known version.',
  },
  'lock-outdated': {
    status: 409,
    exit: EXIT.conflict,
    retry: false,
    when: 'With --locked: the lock file does not cover what was asked for, or a locked version is gone.',
  },
  'installation-changed': {
    status: 409,
    exit: EXIT.conflict,
    retry: true,
    when: 'Another command changed the installation at the same time.',
  },
  'not-installed': { status: 404, exit: EXIT.notFound, retry: false, when: 'The package is not in this installation.' },
  'not-owner': {
    status: 403,
    exit: EXIT.refused,
    retry: false,
    when: 'Only the publisher of a version may yank, deprecate or delete it.',
  },
  'operation-unsupported': {
    status: 422,
    exit: EXIT.invalid,
    retry: false,
    when: 'This kind of asset, or another node, does not have that operation.',
  },
  'template-not-found': { status: 404, exit: EXIT.notFound, retry: false, when: 'No template has that name.' },
  // trust
  'key-locked': {
    status: 403,
    exit: EXIT.refused,
    retry: false,
    when: 'The key store is encrypted with a passphrase and it was missing or wrong.',
  },
  'key-invalid': {
    status: 422,
    exit: EXIT.integrity,
    retry: false,
    when: 'A key file is damaged, has wrong permissions, or belongs to another home.',
  },
  'signature-invalid': {
    status: 422,
    exit: EXIT.integrity,
    retry: false,
    when: 'A signature is missing, re-encoded, or does not match the bytes and the key; both algorithms are required.',
  },
  'audit-conflict': {
    status: 422,
    exit: EXIT.integrity,
    retry: false,
    when: 'An audit found two certified statements that contradict each other: more than a third of a committee was dishonest, or a rule is wrong.',
  },
  'certificate-invalid': {
    status: 422,
    exit: EXIT.integrity,
    retry: false,
    when: 'A certificate chain does not lead to the root of the network by the rules of RFC 5280.',
  },
  'certificate-expired': {
    status: 422,
    exit: EXIT.integrity,
    retry: false,
    when: 'A certificate was not valid at the time that counts.',
  },
  'certificate-revoked': {
    status: 422,
    exit: EXIT.integrity,
    retry: false,
    when: 'A certificate in the chain was revoked.',
  },
  'certificate-not-found': {
    status: 404,
    exit: EXIT.notFound,
    retry: false,
    when: 'No certificate has that fingerprint.',
  },
  'log-invalid': {
    status: 422,
    exit: EXIT.integrity,
    retry: false,
    when: 'A transparency-log proof does not lead to the signed tree head.',
  },
  'bundle-invalid': {
    status: 422,
    exit: EXIT.integrity,
    retry: false,
    when: 'A bundle is malformed, or its parts do not belong together.',
  },
  // consensus
  'proof-invalid': { status: 422, exit: EXIT.integrity, retry: false, when: 'A proof document is malformed.' },
  'proof-rejected': {
    status: 403,
    exit: EXIT.refused,
    retry: false,
    when: 'The committee found a proof false or missing; the message says which and why.',
  },
  'proof-expired': {
    status: 403,
    exit: EXIT.refused,
    retry: true,
    when: 'The proofs arrived after their window, or when another committee was in office than that which they were made for; run the command again for a fresh challenge.',
  },
  'proof-replayed': {
    status: 403,
    exit: EXIT.refused,
    retry: false,
    when: 'These proofs were used before for something else.',
  },
  'access-needed': {
    status: 403,
    exit: EXIT.refused,
    retry: true,
    when: 'A node gives content to whoever proves that it may use it, and that was not proved, or a while ago.',
  },
  'anchor-lost': {
    status: 503,
    exit: EXIT.unavailable,
    retry: true,
    when: 'A validator that gave a share of the anchor does not answer for it any more, or the space commitment of this home had to be made again meanwhile; the operation begins with a new anchor.',
  },
  'epoch-over': {
    status: 503,
    exit: EXIT.unavailable,
    retry: true,
    when: 'The committee of this epoch votes no more; the next one takes over in a moment.',
  },
  equivocation: {
    status: 409,
    exit: EXIT.conflict,
    retry: false,
    when: 'The same sequence number was used for two different operations.',
  },
  'endorsement-invalid': {
    status: 422,
    exit: EXIT.integrity,
    retry: false,
    when: 'An endorsement lacks a quorum of valid votes of its committee.',
  },
  'entry-invalid': {
    status: 422,
    exit: EXIT.invalid,
    retry: false,
    when: 'An entry of the ordered log is malformed, or a signature in it does not hold.',
  },
  'epoch-invalid': {
    status: 422,
    exit: EXIT.integrity,
    retry: false,
    when: 'An epoch document does not follow from the committee before it.',
  },
  'stake-insufficient': {
    status: 403,
    exit: EXIT.refused,
    retry: false,
    when: 'The account has fewer tokens, or fewer locked tokens, than needed.',
  },
  'space-unavailable': {
    status: 503,
    exit: EXIT.unavailable,
    retry: true,
    when: 'The space commitment is damaged or cannot be built.',
  },
  'network-mismatch': {
    status: 409,
    exit: EXIT.conflict,
    retry: false,
    when: 'Something belongs to another network than this home.',
  },
  // network
  'network-state': {
    status: 409,
    exit: EXIT.conflict,
    retry: false,
    when: 'The home is in a network with others already, or is in none; the message says which and what to do.',
  },
  'home-not-empty': {
    status: 409,
    exit: EXIT.conflict,
    retry: false,
    when: 'A home that holds packages of one network cannot become a member of another.',
  },
  'invite-invalid': {
    status: 422,
    exit: EXIT.invalid,
    retry: false,
    when: 'A text is not an invite, or was mistyped or cut off.',
  },
  'invite-unknown': {
    status: 403,
    exit: EXIT.refused,
    retry: false,
    when: 'The network did not issue this invite, or took it back.',
  },
  'invite-expired': { status: 403, exit: EXIT.refused, retry: false, when: 'The invite was presented too late.' },
  'invite-used': { status: 403, exit: EXIT.refused, retry: false, when: 'Another machine joined with this invite.' },
  'network-closed': {
    status: 403,
    exit: EXIT.refused,
    retry: false,
    when: 'Nobody comes into this network without an invite, or not any more.',
  },
  'certification-invalid': {
    status: 422,
    exit: EXIT.integrity,
    retry: false,
    when: 'A request for certificates does not prove that its keys are held, or an answer does not belong to the network and the keys.',
  },
  'not-a-member': {
    status: 403,
    exit: EXIT.refused,
    retry: false,
    when: 'The machine that asks is not, or not any more, a member of the network.',
  },
  'committee-only': {
    status: 403,
    exit: EXIT.refused,
    retry: false,
    when: 'Only a home that belongs to the committee of the network can do this.',
  },
  'committee-unreachable': {
    status: 503,
    exit: EXIT.unavailable,
    retry: true,
    when: "No member of the network's committee answers; nothing was lost, and the same command can be repeated.",
  },
  'sequencer-unreachable': {
    status: 503,
    exit: EXIT.unavailable,
    retry: true,
    when: 'The engine that orders entries does not answer, or most of its machines are down; nothing that was acknowledged is lost.',
  },
  'order-stopped': {
    status: 503,
    exit: EXIT.integrity,
    retry: false,
    when: 'The engine that orders entries contradicts itself or what was certified; nothing more is ordered until its operator mends it or the network moves to another one.',
  },
  'order-invalid': {
    status: 422,
    exit: EXIT.integrity,
    retry: false,
    when: 'A certificate, a vote or a part of the order of a network is malformed.',
  },
  'anchor-stale': {
    status: 503,
    exit: EXIT.unavailable,
    retry: true,
    when: "What this home knows of its network's revocations is out of date, and the committee cannot be reached for news.",
  },
  'clock-skewed': {
    status: 409,
    exit: EXIT.conflict,
    retry: false,
    when: 'The clock of this machine is too far from that of the network.',
  },
  // execution
  'runtime-unavailable': {
    status: 503,
    exit: EXIT.unavailable,
    retry: false,
    when: 'This machine cannot run that language, or cannot enforce the policy; `hypermesh doctor` says what is missing.',
  },
  'program-invalid': {
    status: 422,
    exit: EXIT.invalid,
    retry: false,
    when: 'The program or image is not valid for its kind, was altered, or asks for a feature that the sandbox does not offer.',
  },
  'policy-refused': {
    status: 403,
    exit: EXIT.refused,
    retry: false,
    when: 'The policy asks for more than this node allows.',
  },
  'grant-needed': {
    status: 403,
    exit: EXIT.refused,
    retry: false,
    when: 'The program asks for a place on the network or a folder of this machine that you have not allowed; the hint says what to type.',
  },
  'not-runnable': {
    status: 422,
    exit: EXIT.invalid,
    retry: false,
    when: 'The package declares neither language and entry nor an image, or is in a language that needs an image.',
  },
  // host
  'extension-not-found': { status: 404, exit: EXIT.notFound, retry: false, when: 'No extension has that id.' },
  'extension-already-loaded': {
    status: 409,
    exit: EXIT.conflict,
    retry: false,
    when: 'The extension is loaded already.',
  },
  'extension-invalid': {
    status: 422,
    exit: EXIT.invalid,
    retry: false,
    when: 'The manifest, signature or code of an extension is not acceptable.',
  },
  'extension-dependency': {
    status: 409,
    exit: EXIT.conflict,
    retry: false,
    when: 'An extension that this one depends on is missing, has another version, or depends back.',
  },
  'extension-incompatible': {
    status: 409,
    exit: EXIT.conflict,
    retry: false,
    when: 'The extension wants another version of HyperMesh.',
  },
  'extension-failed': {
    status: 502,
    exit: EXIT.internal,
    retry: false,
    when: 'An extension failed while starting, or its process ended.',
  },
  'extension-state': {
    status: 409,
    exit: EXIT.conflict,
    retry: true,
    when: 'The extension is paused, stopping or stopped, or the move from its state is not allowed.',
  },
  'capability-not-granted': {
    status: 403,
    exit: EXIT.refused,
    retry: false,
    when: 'The extension used or needs a capability that this node does not grant it, or that was taken back.',
  },
  'quota-exceeded': {
    status: 429,
    exit: EXIT.unavailable,
    retry: true,
    when: 'A quota of calls, storage, memory or concurrency is used up.',
  },
  timeout: { status: 504, exit: EXIT.unavailable, retry: true, when: 'An operation took longer than its limit.' },
  // network
  'peer-unreachable': {
    status: 503,
    exit: EXIT.unavailable,
    retry: true,
    when: 'Another node does not answer at its address, or the connection to it was lost.',
  },
  'peer-lied': {
    status: 502,
    exit: EXIT.integrity,
    retry: false,
    when: 'Another node broke the protocol, or sent something that is not what it was said to be; nothing of it was used.',
  },
  'identity-mismatch': {
    status: 502,
    exit: EXIT.integrity,
    retry: false,
    when: 'A node could not prove that it is the one that was expected.',
  },
  'address-taken': {
    status: 409,
    exit: EXIT.conflict,
    retry: true,
    when: 'The address and port that the node should listen on are in use, or may not be used.',
  },
  'network-unreachable': {
    status: 503,
    exit: EXIT.unavailable,
    retry: true,
    when: 'This machine has no network, or not that address.',
  },
  'record-invalid': {
    status: 422,
    exit: EXIT.integrity,
    retry: false,
    when: 'A signed statement of another node or publisher is malformed, or does not hold.',
  },
  // state and monitoring
  'state-invalid': {
    status: 422,
    exit: EXIT.integrity,
    retry: false,
    when: 'A state export is damaged; nothing was imported.',
  },
  'state-too-new': {
    status: 409,
    exit: EXIT.conflict,
    retry: false,
    when: 'A state export was written by a newer version.',
  },
  'state-too-old': {
    status: 409,
    exit: EXIT.conflict,
    retry: false,
    when: 'A state export was written before the formats in it became what they are.',
  },
  'state-conflict': { status: 409, exit: EXIT.conflict, retry: true, when: 'A value changed since it was read.' },
  'events-lost': {
    status: 410,
    exit: EXIT.notFound,
    retry: false,
    when: 'Events before that sequence number are no longer kept.',
  },
} as const satisfies Record<string, ErrorRow>;

export type ErrorCode = keyof typeof ERRORS;

export interface ErrorOptions {
  /** What the reader can do next; printed on a line of its own. */
  readonly hint?: string;
  /** Machine-readable particulars: plain data, never secrets. */
  readonly details?: Readonly<Record<string, unknown>>;
  readonly cause?: unknown;
}

/** A refusal or a failure of the world. The message says what was expected and what came; the hint says what to do. */
export class HyperMeshError extends Error {
  override readonly name = 'HyperMeshError';
  readonly code: ErrorCode;
  readonly hint: string | undefined;
  readonly details: Readonly<Record<string, unknown>> | undefined;

  constructor(code: ErrorCode, message: string, options: ErrorOptions = {}) {
    super(message, options.cause === undefined ? {} : { cause: options.cause });
    this.code = code;
    this.hint = options.hint;
    this.details = options.details;
  }
}

export function isCoded(error: unknown, ...codes: ErrorCode[]): error is HyperMeshError {
  return error instanceof HyperMeshError && (codes.length === 0 || codes.includes(error.code));
}

/** In the place of a system's code: the file is there and readable, and is not what it should be. */
const DAMAGED = 'damaged';

/** The form in which an error crosses a process or network border. */
export interface ProblemDocument {
  readonly code: ErrorCode;
  readonly message: string;
  readonly hint?: string;
  readonly details?: Readonly<Record<string, unknown>>;
}

export function toProblem(thrown: unknown): ProblemDocument {
  // A full, read-only or damaged disk is never a defect, wherever it is met.
  const error = isDiskState(thrown) ? storageError(thrown, 'working with the files of the home') : thrown;
  if (!isCoded(error))
    return { code: 'internal', message: 'An internal error occurred; the log of the node has the details.' };
  return {
    code: error.code,
    message: error.message,
    ...(error.hint === undefined ? {} : { hint: error.hint }),
    ...(error.details === undefined ? {} : { details: error.details }),
  };
}

export function fromProblem(problem: ProblemDocument): HyperMeshError {
  const code = problem.code in ERRORS ? problem.code : 'internal';
  return new HyperMeshError(code, problem.message, problem);
}

/** "I/O error", although it only says that the index of the journal found no room. */
const SQLITE_IOERR_SHMSIZE = 4_874;

/** Primary result codes of SQLite that stand for what the operating system would have said, or for a damaged file. */
const SQLITE_AS_ERRNO: Readonly<Record<number, string>> = {
  8: 'EROFS',
  10: 'EIO',
  11: DAMAGED,
  13: 'ENOSPC',
  14: 'EACCES',
  26: DAMAGED,
};

/** The system's code of a failed file or database operation: `ENOSPC`, `EROFS`, …; undefined when it is no such failure. */
export function storageCode(error: unknown): string | undefined {
  const { code, errcode } = (error ?? {}) as { code?: string; errcode?: number };
  if (errcode === undefined) return code;
  return errcode === SQLITE_IOERR_SHMSIZE ? 'ENOSPC' : SQLITE_AS_ERRNO[errcode & 0xff];
}

function isDiskState(error: unknown): boolean {
  return !isCoded(error) && ['ENOSPC', 'EDQUOT', 'EROFS', DAMAGED].includes(storageCode(error) ?? '');
}

/** Maps an error of the file system or of SQLite to a coded one: a full or read-only disk is the user's to mend, not a bug. */
export function storageError(error: unknown, doing: string): HyperMeshError {
  if (isCoded(error)) return error;
  const code = storageCode(error);
  const hint = STORAGE_HINTS[code ?? ''];
  switch (code) {
    case 'ENOSPC':
    case 'EDQUOT':
      return new HyperMeshError('storage-full', `No space is left while ${doing}.`, {
        hint: 'Free some space, or run `hypermesh gc`, and try again; nothing was half-written.',
        cause: error,
      });
    case 'EROFS':
      return new HyperMeshError('storage-read-only', `The file system cannot be written to: ${doing}.`, {
        hint: 'Make it writable (it is mounted read-only), or choose another place with --home or --to.',
        cause: error,
      });
    case 'EACCES':
    case 'EPERM':
      return new HyperMeshError('storage-read-only', `Permission denied while ${doing}.`, {
        hint: 'Check who owns the folder, or choose another one with --home or --to.',
        cause: error,
      });
    case DAMAGED:
      return new HyperMeshError('storage-failed', `A damaged database was met while ${doing}.`, {
        hint: 'Restore the home from a backup, or begin a new one and import a state export there.',
        cause: error,
      });
    default:
      return new HyperMeshError(
        'storage-failed',
        `The operating system reported ${code ?? 'an error'} while ${doing}.`,
        { ...(hint === undefined ? {} : { hint }), cause: error },
      );
  }
}

const STORAGE_HINTS: Readonly<Record<string, string>> = {
  ENOENT: 'There is no such file or folder; check the spelling, or make the folder first.',
  EISDIR: 'A folder has that name; choose another one.',
  ENOTDIR: 'Something on the way there is a file and not a folder; choose another path.',
};

/** Runs `work`; what the operating system refuses becomes {@link storageError}. */
export async function storing<T>(doing: string, work: () => T | Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw storageError(error, doing);
  }
}
