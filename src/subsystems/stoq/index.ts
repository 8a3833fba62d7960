export { openTransport, type Pace, type Stoq, type StoqLimits } from './transport.ts';
