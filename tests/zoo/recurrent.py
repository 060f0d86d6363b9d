"""Recurrence: torch's own modules, cells in a loop, and convolutions in a loop."""

import torch
from torch import Tensor, nn

from tests.zoo.network import CLASSES, Net, block, conv, head, images, pooled, zoo


def rows(x: Tensor) -> Tensor:
    """Return images [N, C, H, W] as sequences of their rows, [N, H, CW]."""
    return x.permute(0, 2, 1, 3).flatten(2)


@zoo("recurrent", images(1))
def lstm():
    def flow(net, x):
        return net.head(net.lstm(net.stem(rows(x)).relu())[0][:, -1])

    return Net(flow, stem=nn.Linear(8, 6), lstm=nn.LSTM(6, 8, batch_first=True), head=head(8))


@zoo("recurrent", images(1))
class LinearCell(nn.Module):
    """A cell of two linear layers in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.given, self.kept, self.head = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), head(8)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 8)
        for row in rows(x).unbind(1):
            state = torch.tanh(self.given(row) + self.kept(state))
        return self.head(state)


@zoo("recurrent", images(1))
def gru_both_ways():
    def flow(net, x):
        made, _ = net.gru(rows(x))
        return net.head(net.hidden(made.mean(1)).relu())

    gru = nn.GRU(8, 4, batch_first=True, bidirectional=True)
    return Net(flow, gru=gru, hidden=nn.Linear(8, 8), head=head(8))


@zoo("recurrent", images(1))
def rnn_cell_unrolled():
    def flow(net, x):
        state = None
        for row in rows(x)[:, :4].unbind(1):
            state = net.cell(net.stem(row).relu(), state)
        return net.head(state)

    return Net(flow, stem=nn.Linear(8, 6), cell=nn.RNNCell(6, 8), head=head(8))


@zoo("recurrent", images(1))
def lstm_cell_unrolled():
    def flow(net, x):
        state = None
        for row in rows(x)[:, :4].unbind(1):
            state = net.cell(row, state)
        return net.head(net.hidden(state[0]).relu())

    return Net(flow, cell=nn.LSTMCell(8, 8), hidden=nn.Linear(8, 8), head=head(8))


@zoo("recurrent", images(6))
def convolution_cell_unrolled():
    def flow(net, x):
        state = 0
        for part in x.chunk(3, 1):
            state = torch.relu(net.given(part) + (net.kept(state) if net.steps(state) else 0))
        return net.head(pooled(state))

    net = Net(flow, given=conv(2, 6), kept=conv(6, 6, bias=False), head=head(6))
    net.steps = torch.is_tensor
    return net


@zoo("recurrent", images(6))
class ConvLSTM(nn.Module):
    """A convolutional LSTM over three frames."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = conv(6, 16), head(4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = x.new_zeros(x.shape[0], 4, *x.shape[2:])
        for frame in x.chunk(3, 1):
            i, f, o, g = self.gates(torch.cat([frame, hidden], 1)).chunk(4, 1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
        return self.head(pooled(hidden))


@zoo("recurrent", images(1))
def stacked_lstm():
    def flow(net, x):
        return net.head(net.norm(net.hidden(net.lstm(rows(x))[0][:, -1])).relu())

    lstm = nn.LSTM(8, 4, num_layers=2, batch_first=True)
    return Net(flow, lstm=lstm, hidden=nn.Linear(4, 8), norm=nn.BatchNorm1d(8), head=head(8))


@zoo("recurrent", images(1), "values")
def characters_of_a_line():
    def flow(net, x):
        columns = net.body(x).mean(2).transpose(1, 2)
        return net.out(net.gru(columns)[0])

    gru = nn.GRU(6, 6, batch_first=True)
    return Net(flow, body=block(1, 6), gru=gru, out=nn.Linear(6, CLASSES))


@zoo("recurrent", images(1), "values")
def sequence_and_state():
    def flow(net, x):
        made, state = net.rnn(net.stem(rows(x)))
        return net.out(made), state.transpose(0, 1)

    rnn = nn.RNN(6, 8, nonlinearity="relu", batch_first=True)
    return Net(flow, stem=nn.Linear(8, 6), rnn=rnn, out=nn.Linear(8, CLASSES))
