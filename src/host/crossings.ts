import type { Capabilities, CapabilityName } from '../capabilities/extension.ts';

/** How one method of a capability crosses the border between host and extension. */
export interface Crossing {
  /**
   * `call`: answers within the time limit of a call. `long`: reports progress or waits for its turn, ends by its signal instead of the clock.
   * `stream`: an async iterable, the limit holds for each step. `live`: a stream that may wait for things to come.
   */
  readonly kind: 'call' | 'long' | 'stream' | 'live';
  /** Position of the argument with `signal` and `onProgress`. */
  readonly options?: number;
  /** Position of the argument that is a stream of bytes. */
  readonly content?: number;
}

const call: Crossing = { kind: 'call' };

/** Every method of every capability: the compiler notices one that is missing or gone. */
export const CROSSINGS = {
  assets: {
    put: { kind: 'long', content: 0, options: 1 },
    putTree: { kind: 'long', content: 0, options: 1 },
    stat: call,
    read: { kind: 'stream', options: 1 },
    tree: { kind: 'call', options: 1 },
    readFile: { kind: 'stream', options: 2 },
    create: call,
    get: call,
    versions: call,
    query: call,
    setState: call,
    dependents: call,
    delete: call,
    totals: call,
    install: { kind: 'long', options: 2 },
    prepareInstallation: { kind: 'long', options: 2 },
    installation: call,
    installationHistory: call,
    checkInstallation: { kind: 'long', options: 1 },
    collect: { kind: 'long', options: 0 },
    scrub: { kind: 'long', options: 0 },
    annotate: call,
    annotations: call,
  },
  consensus: {
    requirements: call,
    genesis: call,
    challenge: call,
    prove: { kind: 'long', options: 1 },
    verify: call,
    admit: { kind: 'call', options: 1 },
    verifyEndorsement: call,
    stake: call,
    lockStake: call,
    unlockStake: call,
    transferStake: call,
    space: call,
    commitSpace: { kind: 'long', options: 0 },
    canAccessPackage: call,
    accessChallenge: call,
    accessOpened: call,
    validateAccessProof: call,
  },
  trust: {
    identity: call,
    sign: call,
    verify: call,
    attest: call,
    attestFast: call,
    attested: call,
    signedBy: call,
    publicKeys: call,
    validatorKeys: call,
    anchor: call,
    certificates: call,
    renew: call,
    revoke: call,
    logAppend: call,
    logHead: call,
    logConsistency: call,
  },
  vm: {
    runtimes: call,
    run: { kind: 'long', options: 1 },
  },
  monitoring: {
    report: call,
    emit: call,
    metrics: call,
    events: { kind: 'live', options: 0 },
  },
  state: { get: call, write: call, list: call },
  resources: {
    allocate: { kind: 'long', options: 1 },
    release: call,
    limits: call,
    usage: call,
  },
  transport: {
    status: call,
    peers: call,
    discoverPeers: { kind: 'long', options: 0 },
    broadcast: call,
    arrivals: { kind: 'live', options: 0 },
    judge: call,
    retire: call,
    sync: { kind: 'long', options: 0 },
    announce: call,
    withdraw: call,
    fetch: { kind: 'long', options: 2 },
    distribute: { kind: 'long', options: 1 },
  },
} as const satisfies { readonly [Name in CapabilityName]: Readonly<Record<keyof Capabilities[Name], Crossing>> };

/** The rows of one capability, by method name. */
export function crossingsOf(name: CapabilityName): ReadonlyMap<string, Crossing> {
  return new Map(Object.entries(CROSSINGS[name]));
}
