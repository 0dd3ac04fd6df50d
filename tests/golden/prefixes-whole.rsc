# greenlane session 00000000000000ab serial 1
/ip firewall address-list
remove [find list="greenlane-new"]
add list="greenlane-new" address=0.0.0.0/0
remove [find list="greenlane"]
set [find list="greenlane-new"] list="greenlane"
/ipv6 firewall address-list
remove [find list="greenlane-new"]
add list="greenlane-new" address=::/0
remove [find list="greenlane"]
set [find list="greenlane-new"] list="greenlane"
