# greenlane session 00000000000000ab serial 0
/ip firewall address-list
remove [find list="greenlane-new"]
remove [find list="greenlane"]
set [find list="greenlane-new"] list="greenlane"
/ipv6 firewall address-list
remove [find list="greenlane-new"]
remove [find list="greenlane"]
set [find list="greenlane-new"] list="greenlane"
