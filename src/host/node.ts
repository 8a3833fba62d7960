import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import type { CallOptions } from '../base/call.ts';
import { type Clock, systemClock } from '../base/clock.ts';
import type { Digest } from '../base/digest.ts';
import type { Assets } from '../capabilities/assets.ts';
import type { Consensus, SpaceStatus } from '../capabilities/consensus.ts';
import type { Membership } from '../capabilities/membership.ts';
import type { MetricSample, Monitoring } from '../capabilities/monitoring.ts';
import type { Resources, ResourceUsage } from '../capabilities/resources.ts';
import type { Ban, Transport } from '../capabilities/transport.ts';
import type { Trust } from '../capabilities/trust.ts';
import type { Execution } from '../capabilities/vm.ts';
import { openAssets } from '../subsystems/assets/index.ts';
import { type MonitoringSubsystem, openMonitoring } from '../subsystems/monitoring/index.ts';
import { type NKryptOptions, openConsensus } from '../subsystems/nkrypt/index.ts';
import { openResources } from '../subsystems/resources/index.ts';
import { exportState, importState, openState, recoverImport } from '../subsystems/state/index.ts';
import { type Method, openTransport, type Pace, type StoqLimits } from '../subsystems/stoq/index.ts';
import { openTrust, signatureCheck } from '../subsystems/trustchain/index.ts';
import { type GrantKeeper, type Languages, openExecution } from '../subsystems/vm/index.ts';
import type { OperationKind, Requirements } from '../wire/proof.ts';
import { accessMethods } from './access-methods.ts';
import { Extensions, type ExtensionsOptions, type LoadedSummary } from './extensions.ts';
import { type Home, openHome } from './home.ts';
import { NetworkMembership } from './membership.ts';
import { membershipMethods } from './membership-methods.ts';
import { finishMove } from './network-move.ts';
import type { NetworkSide } from './network-side.ts';
import { termsRecord } from './network-terms.ts';
import { ownAssets } from './own-assets.ts';
import { Snapshots } from './snapshots.ts';
import { spaceMethods } from './space-methods.ts';
import { type NamedStatus, withPackages } from './transfer-names.ts';

/** Everything that a node is made from. Only `home` is required. */
export interface NodeConfig {
  /** Folder of the node; made when it is not there. */
  readonly home: string;
  /** Opens the key store; without it the keys lie behind a key file that only the owner can read. */
  readonly passphrase?: string;
  /** Common name in this home's certificates. */
  readonly subject?: string;
  readonly clock?: Clock;
  /** Numbers of the network that a new home founds. Read only when its genesis is made. */
  readonly network?: {
    readonly requirements?: Partial<Record<OperationKind, Requirements>>;
    /** The standing space commitment: bytes, and hash iterations per label. */
    readonly space?: { readonly bytes: number; readonly iterations?: number };
    /** Tokens of the founding publisher. */
    readonly stakeInitial?: number;
  };
  /** Worker threads for the proof of work; one for each processor but one, at most 4, by default. */
  readonly threads?: number;
  /** Programs that run at the same time; the number of processors by default. */
  readonly runsMax?: number;
  /** Processes of WebAssembly programs that wait for another run; 0: each run has its own. */
  readonly keptBoxes?: number;
  readonly extensions?: ExtensionsOptions;
  /** In the place of the node's own sockets, for tests: answers other nodes with these methods. */
  readonly networkSide?: (methods: ReadonlyMap<string, Method>) => NetworkSide;
  readonly peers?: PeersConfig;
  /** How this machine gets into a cluster of etcd, where the network's order is made in one. */
  readonly etcd?: NonNullable<NKryptOptions['etcd']>;
  /** What happens without anybody asking: nodes that come and go, a port that is taken. */
  readonly log?: (level: 'info' | 'warn', message: string, details?: Readonly<Record<string, unknown>>) => void;
}

/** How a home that is in a network of several deals with the other nodes. */
export interface PeersConfig {
  /** False for a node that ends with its one command: it neither listens nor keeps copies for others. Default true. */
  readonly stays?: boolean;
  /** `host:port` that others are told to connect to, where this machine cannot know by itself. */
  readonly advertise?: readonly string[];
  /** Looks for nodes of the same network on the local link, and answers those who look. Default true. */
  readonly lan?: boolean;
  readonly limits?: Partial<StoqLimits>;
  readonly pace?: Partial<Pace>;
}

export interface NodeStatus {
  readonly version: string;
  readonly home: string;
  readonly pid: number;
  readonly startedAtMs: number;
  readonly uptimeMs: number;
  readonly networkId: Digest;
  /** Key id and subject that this home publishes as. */
  readonly publisher: { readonly keyId: string; readonly subject: string; readonly notAfterMs: number };
  readonly totals: Awaited<ReturnType<Assets['totals']>>;
  readonly space: SpaceStatus;
  readonly resources: ResourceUsage;
  readonly transport: NamedStatus;
  readonly health: Awaited<ReturnType<MonitoringSubsystem['health']>>;
  readonly extensions: readonly LoadedSummary[];
}

/** Monitoring as the node's owner sees it: the capability under the source `host`, and what only the owner may. */
export interface NodeMonitoring extends Monitoring, Pick<MonitoringSubsystem, 'for' | 'prometheus' | 'health'> {}

/** STOQ as the node's owner has it: the capability, and what only the owner may. */
export interface OwnedTransport extends Transport {
  bans(): Promise<readonly Ban[]>;
  /** Errors: `usage` when no banned node has that id. */
  ban(node: string): Promise<Ban & { readonly evidence: Uint8Array }>;
  /** Errors: `usage` when no banned node has that id. */
  forgive(node: string): Promise<void>;
}

/** One running node: the subsystems as capabilities, the extensions, and what concerns them all. */
export interface HostNode extends AsyncDisposable {
  readonly home: Home;
  readonly assets: Assets;
  readonly trust: Trust;
  readonly consensus: Consensus;
  readonly vm: Execution & Languages & GrantKeeper;
  readonly monitoring: NodeMonitoring;
  readonly resources: Resources;
  readonly transport: OwnedTransport;
  readonly extensions: Extensions;
  /** The place of this home in a network with others. */
  readonly membership: Membership;
  /** The whole node as one verified, versioned stream (docs/protocol/state-export.md). */
  exportState(options?: CallOptions): AsyncIterable<Uint8Array>;
  /**
   * Verifies the whole stream before anything is touched; extensions are paused meanwhile.
   * Errors: `state-invalid`, `state-too-new`, `state-conflict`, `storage-*`, `cancelled`.
   */
  importState(stream: AsyncIterable<Uint8Array>, options?: CallOptions): Promise<void>;
  getMetrics(pattern: string): Promise<readonly MetricSample[]>;
  status(): Promise<NodeStatus>;
}

/**
 * Opens everything once, in the order in which one part needs another, and closes it in reverse.
 * Nothing heavy happens before it returns: keys of a new home are made, its space commitment goes on in the background.
 * Errors: those of `openHome` and of the parts: `home-*`, `storage-*`, `key-*`, `config-invalid`.
 */
export async function openNode(config: NodeConfig): Promise<HostNode> {
  const clock = config.clock ?? systemClock;
  const startedAtMs = clock.nowMs();
  const version = await hostVersion();
  await using stack = new AsyncDisposableStack();

  const home = stack.use(await openHome(config.home));
  await home.require(['state/state.db', 'trust/trust.db', 'assets/index.db', 'consensus/nkrypt.db']);
  const monitoring = stack.use(await openMonitoring({ directory: await home.folder('monitoring'), clock }));
  const state = stack.use(await openState({ directory: await home.folder('state'), clock }));
  const resources = stack.use(await openResources({ directory: home.directory, clock }));
  const trust = stack.use(
    await openTrust({
      directory: await home.folder('trust'),
      clock,
      ...(config.passphrase === undefined ? {} : { passphrase: config.passphrase }),
      ...(config.subject === undefined ? {} : { subject: config.subject }),
    }),
  );
  const assets = stack.use(await openAssets({ directory: await home.folder('assets'), clock }));
  for (const figure of ['hits', 'misses'] as const) {
    monitoring.observe({
      ...{ name: `catalog.cache.${figure}`, kind: 'counter', unit: '1' },
      read: () => Object.entries(assets.cacheFigures()).map(([level, of]) => ({ value: of[figure], tags: { level } })),
    });
  }
  const consensus = stack.use(
    await openConsensus(
      { trust, check: signatureCheck },
      {
        directory: await home.folder('consensus'),
        clock,
        ...config.network,
        ...(config.threads === undefined ? {} : { threads: config.threads }),
        ...(config.etcd === undefined ? {} : { etcd: config.etcd }),
      },
    ),
  );
  const vm = stack.use(
    await openExecution(
      { assets, resources: resources.for('vm') },
      {
        directory: await home.folder('vm'),
        home: home.directory,
        ...(config.runsMax === undefined ? {} : { concurrency: config.runsMax }),
        ...(config.keptBoxes === undefined ? {} : { limits: { keptBoxesMax: config.keptBoxes } }),
      },
    ),
  );

  const { peers = {}, log } = config;
  let membership: NetworkMembership | undefined;
  const methods = new Map([
    ...membershipMethods({
      ...{ trust, consensus, clock },
      addresses: () => side.addresses(),
      addressesOf: (node) => side.addressesOf(node),
    }),
    ...accessMethods(consensus),
    ...spaceMethods(consensus),
  ]);
  const transport = stack.use(
    await openTransport(
      {
        node: trust.keyIds().node,
        trust,
        content: assets.exchange,
        read: (blob) => assets.read(blob),
        network: async () => (await consensus.genesis()).networkId,
        access: {
          has: (publisher, resource) => consensus.hasAccess(publisher, resource),
          gain: async (node, { kind, resources }, ask) => {
            await consensus.gainAccess(node, kind, resources, ask);
          },
        },
        epochs: consensus.epochRecords,
        terms: termsRecord({ trust, consensus }),
        seats: () => trust.membership()?.committee ?? [],
        banned: (node) => void membership?.misbehaved(node).catch(() => undefined),
      },
      {
        ...peers,
        directory: await home.folder('stoq'),
        clock,
        methods,
        stays: peers.stays ?? true,
        ...(log === undefined ? {} : { log }),
      },
    ),
  );
  consensus.watchSpace({
    ask: (node, method, body, options) => transport.ask(node, method, body, options),
    seats: () => trust.membership()?.committee ?? [],
  });
  const side: NetworkSide = config.networkSide?.(methods) ?? transport;

  const snapshots = new Snapshots(await home.folder('extensions'));
  const extensions = stack.use(
    new Extensions(
      {
        lendable: ({ id, limits, provides }) => ({
          capabilities: {
            assets: ownAssets(assets, { extension: id, provides, assetsMax: limits.assets }),
            consensus,
            trust,
            vm,
            monitoring: monitoring.for(id),
            state: state.space(id, { spaceBytesMax: limits.stateBytes }),
            resources: resources.for(id),
            transport,
          },
          release: () => resources.releaseAll(id),
        }),
        trust,
        monitoring: monitoring.for('host'),
      },
      { ...config.extensions, version, clock, snapshots },
    ),
  );

  const sections = [state.section, trust.section, consensus.section, assets.section, snapshots.section(extensions)];
  const importing = { directory: await home.folder('import'), clock };
  await recoverImport(sections, importing);
  const moves = await home.folder('network');
  await finishMove({ trust, consensus, assets }, moves);
  await home.complete();

  const place = stack.use(
    new NetworkMembership(
      {
        trust,
        consensus,
        assets,
        network: side,
        peers: () => transport.peers(),
        whilePaused: (work) => extensions.whilePaused(work),
      },
      { directory: moves, clock },
    ),
  );
  membership = place;
  consensus.watchEpochs(() => {
    transport.epochsChanged();
    place.epochsChanged();
  });
  await place.enter();

  const opened = stack.move();
  return {
    home,
    assets,
    trust,
    consensus,
    vm,
    monitoring: {
      ...monitoring.for('host'),
      for: (source) => monitoring.for(source),
      prometheus: () => monitoring.prometheus(),
      health: () => monitoring.health(),
    },
    resources: resources.for('host'),
    transport,
    extensions,
    membership: place,
    async *exportState(options) {
      const { networkId } = await consensus.genesis();
      yield* exportState(
        sections,
        { createdAtMs: clock.nowMs(), software: `hypermesh/${version}`, networkId },
        options,
      );
    },
    importState: (stream, options) =>
      extensions.whilePaused(async () => {
        await importState(stream, sections, { ...importing, ...options });
        await place.enter({ anew: true });
      }),
    getMetrics: (pattern) => monitoring.metrics(pattern),
    async status() {
      const [{ networkId }, certificates, totals, space, usage, health, network] = await Promise.all([
        consensus.genesis(),
        trust.certificates(),
        assets.totals(),
        consensus.space(),
        resources.usage(),
        monitoring.health(),
        transport.status(),
      ]);
      // The newest, also when it ran out or was revoked: the status of a node does not depend on its network.
      const publisher = certificates.find(({ role }) => role === 'publisher')!;
      return {
        version,
        home: home.directory,
        pid: process.pid,
        startedAtMs,
        uptimeMs: clock.nowMs() - startedAtMs,
        networkId,
        publisher: { keyId: publisher.keyId, subject: publisher.subject, notAfterMs: publisher.notAfterMs },
        totals,
        space,
        resources: usage,
        transport: await withPackages(network, assets),
        health,
        extensions: extensions.list(),
      };
    },
    [Symbol.asyncDispose]: () => opened.disposeAsync(),
  };
}

/** Of this package: what extensions state a range for, and what exports are marked with. */
async function hostVersion(): Promise<string> {
  const text = await readFile(new URL('../../package.json', import.meta.url), 'utf8');
  return z.object({ version: z.string() }).parse(JSON.parse(text)).version;
}
