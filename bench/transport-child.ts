import { type Certified, serve, type Transport } from './transports.ts';

/** The serving end in a process of its own: answers with its address, and then to every message with the CPU time it has used. */
process.once('message', ({ transport, me }: { readonly transport: Transport; readonly me: Certified }) => {
  void serve(transport, me).then((at) => process.send?.({ at }));
  process.on('message', () => {
    const { user, system } = process.cpuUsage();
    process.send?.({ cpuMs: (user + system) / 1_000 });
  });
});
process.once('disconnect', () => process.exit());
